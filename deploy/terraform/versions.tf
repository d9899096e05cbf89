terraform {
  required_version = ">= 1.5"

  required_providers {
    hcloud = {
      source = "hetznercloud/hcloud"
      # location of a primary address came with 1.58.
      version = "~> 1.58"
    }
  }
}

# The token comes from HCLOUD_TOKEN.
provider "hcloud" {}
