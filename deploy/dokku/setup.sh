#!/bin/sh
# Prepares a Dokku server for the relay. On the server, as a user who may run
# dokku, with DNS of both names already pointing there:
#	RELAY_HOST=relay.example.com APPS_DOMAIN=apps.example.com ./setup.sh
# It may be run again.
set -eu

: "${RELAY_HOST:?the name of the relay}" "${APPS_DOMAIN:?apps are at <app>.<this>}"
app=${APP:-postern-relay}
data=/var/lib/dokku/data/storage/$app

dokku apps:exists "$app" >/dev/null 2>&1 || dokku apps:create "$app"

# The image's user, 65532, must own the folder, which outlives the containers.
dokku storage:ensure-directory --chown false "$app"
sudo chown 65532:65532 "$data"
dokku storage:list "$app" | grep -q /var/lib/postern || dokku storage:mount "$app" "$data:/var/lib/postern"

dokku config:set --no-restart "$app" \
	POSTERN_PUBLIC_URL="https://$RELAY_HOST" \
	POSTERN_APPS_DOMAIN="$APPS_DOMAIN" \
	POSTERN_DATA=/var/lib/postern/data \
	POSTERN_TRUSTED_PROXIES=172.16.0.0/12

dokku builder-dockerfile:set "$app" dockerfile-path deploy/docker/Dockerfile
dokku app-json:set "$app" appjson-path deploy/dokku/app.json
dokku domains:set "$app" "$RELAY_HOST" "*.$APPS_DOMAIN"

# One relay: the old container ends before the new one is checked.
dokku checks:disable "$app" web
# More than POSTERN_GRACE, 25 s.
dokku ps:set "$app" stop-timeout-seconds 120

# As in deploy/nginx: long requests, long uploads, nothing kept back.
dokku nginx:set "$app" proxy-read-timeout 3600s
dokku nginx:set "$app" proxy-send-timeout 3600s
dokku nginx:set "$app" client-max-body-size 0
dokku nginx:set "$app" proxy-buffering off
dokku proxy:build-config "$app"

echo "now push: git push dokku@$RELAY_HOST:$app main"
echo "then a token: sudo docker exec $app.web.1 postern-relay token create --app shop"
