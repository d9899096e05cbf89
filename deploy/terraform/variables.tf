variable "name" {
  description = "Name of the server and of what belongs to it."
  type        = string
  default     = "postern-relay"
}

variable "location" {
  description = "Where the server is: fsn1, nbg1, hel1, ash, hil or sin. It cannot be changed without losing the address."
  type        = string
  default     = "fsn1"
}

variable "server_type" {
  description = "Size of the server; the architecture must be that of the binary."
  type        = string
  default     = "cx23"
}

variable "volume_gb" {
  description = "Size of the volume for database and keys."
  type        = number
  default     = 20

  validation {
    condition     = var.volume_gb >= 10
    error_message = "Hetzner's volumes have 10 GB at least."
  }
}

variable "relay_host" {
  description = "Name of the relay, relay.example.com."
  type        = string
}

variable "apps_domain" {
  description = "Apps are at <app>.<this>, apps.example.com."
  type        = string
}

variable "apps" {
  description = "Apps that get a certificate, one each: [\"shop\"]."
  type        = list(string)
  default     = []
}

variable "acme_email" {
  description = "Whom Let's Encrypt writes to."
  type        = string
}

variable "binary_url" {
  description = "https URL of the postern-relay binary, for the server's architecture."
  type        = string

  validation {
    condition     = startswith(var.binary_url, "https://")
    error_message = "The binary is fetched by https."
  }
}

variable "binary_sha256" {
  description = "SHA-256 of that binary, in hex; sha256sum bin/postern-relay prints it."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.binary_sha256))
    error_message = "64 hex digits in lower case."
  }
}

variable "manifest" {
  description = "The manifest that declares apps and endpoints, as YAML. Later changes are made on the server."
  type        = string
  default     = "version: 1\napps: {}\n"
}

variable "ssh_key_names" {
  description = "Names of SSH keys that the project has already."
  type        = list(string)

  validation {
    condition     = length(var.ssh_key_names) > 0
    error_message = "Without a key nobody could make a token on the server."
  }
}

variable "admin_cidrs" {
  description = "From where SSH is allowed."
  type        = list(string)
}
