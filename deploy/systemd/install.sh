#!/bin/sh
# Installs the relay's binary, user and unit. As root, in this folder:
#	./install.sh PATH-TO-postern-relay
# Nothing that is already configured is changed. DESTDIR installs elsewhere.
set -eu

binary=${1:?usage: install.sh PATH-TO-postern-relay}
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}

install -D -m 0755 "$binary" "$root/usr/local/bin/postern-relay"
install -D -m 0644 "$here/postern.sysusers.conf" "$root/usr/lib/sysusers.d/postern.conf"
install -D -m 0644 "$here/postern-relay.service" "$root/etc/systemd/system/postern-relay.service"
install -d -m 0755 "$root/etc/postern"
if [ ! -e "$root/etc/postern/relay.env" ]; then
	install -m 0600 "$here/relay.env" "$root/etc/postern/relay.env"
fi
if [ ! -e "$root/etc/postern/postern.yaml" ]; then
	printf 'version: 1\napps: {}\n' >"$root/etc/postern/postern.yaml"
	chmod 0644 "$root/etc/postern/postern.yaml"
fi
if [ -z "$root" ]; then
	systemd-sysusers
	systemctl daemon-reload
fi
echo "now change /etc/postern/relay.env, then: systemctl enable --now postern-relay"
