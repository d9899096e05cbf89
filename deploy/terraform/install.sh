#!/bin/sh
# Fetches a postern-relay binary, and installs it if it is the one that is meant:
#	postern-install URL SHA256
# For an upgrade: the same, then systemctl restart postern-relay.
set -eu

url=${1:?usage: postern-install URL SHA256}
sha256=${2:?usage: postern-install URL SHA256}
target=${TARGET:-/usr/local/bin/postern-relay}

new=$target.new
trap 'rm -f "$new"' EXIT
curl --fail --silent --show-error --location --retry 5 --retry-connrefused \
	--max-time 300 --max-filesize 209715200 --output "$new" "$url"
echo "$sha256  $new" | sha256sum --check --quiet
chmod 0755 "$new"
"$new" --version
mv "$new" "$target"
