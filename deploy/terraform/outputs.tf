output "ipv4" {
  description = "The relay's address, in and out. It stays when the server is replaced."
  value       = hcloud_primary_ip.ipv4.ip_address
}

output "ipv6" {
  description = "The relay's IPv6 network; the server has its first address."
  value       = hcloud_primary_ip.ipv6.ip_address
}

output "dns" {
  description = "Records to make."
  value = [
    "${var.relay_host} A ${hcloud_primary_ip.ipv4.ip_address}",
    "*.${var.apps_domain} A ${hcloud_primary_ip.ipv4.ip_address}",
  ]
}

output "token_command" {
  description = "Makes a token for the agents of an app."
  value       = "ssh root@${hcloud_primary_ip.ipv4.ip_address} sudo -u postern POSTERN_DATA=/var/lib/postern postern-relay token create --app shop"
}
