# A relay on one server, with an address that stays when the server is replaced.

resource "hcloud_primary_ip" "ipv4" {
  name              = "${var.name}-ipv4"
  type              = "ipv4"
  location          = var.location
  assignee_type     = "server"
  auto_delete       = false
  delete_protection = true
}

resource "hcloud_primary_ip" "ipv6" {
  name              = "${var.name}-ipv6"
  type              = "ipv6"
  location          = var.location
  assignee_type     = "server"
  auto_delete       = false
  delete_protection = true
}

# Database and keys: they outlive the server too.
resource "hcloud_volume" "data" {
  name              = "${var.name}-data"
  location          = var.location
  size              = var.volume_gb
  format            = "ext4"
  delete_protection = true
}

resource "hcloud_firewall" "relay" {
  name = var.name

  rule {
    description = "SSH"
    direction   = "in"
    protocol    = "tcp"
    port        = "22"
    source_ips  = var.admin_cidrs
  }

  dynamic "rule" {
    for_each = { http = ["tcp", "80"], https = ["tcp", "443"], http3 = ["udp", "443"] }
    content {
      description = rule.key
      direction   = "in"
      protocol    = rule.value[0]
      port        = rule.value[1]
      source_ips  = ["0.0.0.0/0", "::/0"]
    }
  }

  rule {
    description = "path MTU discovery, ping"
    direction   = "in"
    protocol    = "icmp"
    source_ips  = ["0.0.0.0/0", "::/0"]
  }
}

resource "hcloud_server" "relay" {
  name         = var.name
  server_type  = var.server_type
  image        = "debian-13"
  location     = var.location
  ssh_keys     = var.ssh_key_names
  firewall_ids = [hcloud_firewall.relay.id]
  user_data    = local.cloud_init

  public_net {
    ipv4_enabled = true
    ipv4         = hcloud_primary_ip.ipv4.id
    ipv6_enabled = true
    ipv6         = hcloud_primary_ip.ipv6.id
  }
}

# Mounted by cloud-init, which waits for it.
resource "hcloud_volume_attachment" "data" {
  volume_id = hcloud_volume.data.id
  server_id = hcloud_server.relay.id
  automount = false
}
