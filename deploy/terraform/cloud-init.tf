locals {
  hosts = concat([var.relay_host], [for app in var.apps : "${app}.${var.apps_domain}"])

  cloud_init = templatefile("${path.module}/cloud-init.yaml.tftpl", {
    device = "/dev/disk/by-id/scsi-0HC_Volume_${hcloud_volume.data.id}"
    files = {
      unit     = file("${path.module}/../systemd/postern-relay.service")
      sysusers = file("${path.module}/../systemd/postern.sysusers.conf")
      install  = file("${path.module}/install.sh")
      caddy = templatefile("${path.module}/Caddyfile.tftpl", {
        hosts = local.hosts
        email = var.acme_email
      })
      env      = <<-END
        POSTERN_PUBLIC_URL=https://${var.relay_host}
        POSTERN_APPS_DOMAIN=${var.apps_domain}
        POSTERN_MANIFEST=/etc/postern/postern.yaml
        POSTERN_LISTEN=127.0.0.1:8080
        POSTERN_TRUSTED_PROXIES=127.0.0.1,::1
      END
      manifest = var.manifest
    }
    binary_url    = var.binary_url
    binary_sha256 = var.binary_sha256
  })
}
