#!/bin/sh
# A web server of a shell and socat. See ../README.md for its mistakes.

if [ "$1" = answer ]; then # one connection
	while read -r line; do
		[ "$(printf %s "$line" | tr -d '\r')" = "" ] && break
	done
	printf 'HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n\r\nhello from shell\n'
	exit
fi

if [ -n "$APP_TETHER" ]; then
	exec 3<&0
	(
		cat <&3 >/dev/null
		kill $$
	) 2>/dev/null &
	exec 3<&-
fi

port=${PORT:-$APP_PORT}
to="EXEC:/bin/sh $0 answer"
listen="TCP4-LISTEN:$port,bind=0.0.0.0,reuseaddr,fork"

case "$1" in
'') exec socat "$listen" "$to" ;;
fixed) exec socat "TCP4-LISTEN:$APP_PORT,bind=0.0.0.0,reuseaddr,fork" "$to" ;;
loopback) exec socat "TCP4-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" "$to" ;;
ipv6) exec socat "TCP6-LISTEN:$port,bind=[::],ipv6only=1,reuseaddr,fork" "$to" ;;
hostname) exec socat "TCP4-LISTEN:$port,bind=$HOSTNAME,reuseaddr,fork" "$to" ;;
mute)
	echo "waiting for the database"
	exec sleep 3600
	;;
crash)
	echo "$0: DATABASE_URL: parameter not set" >&2
	exit 3
	;;
debugger)
	socat "TCP4-LISTEN:$APP_PORT,bind=0.0.0.0,reuseaddr,fork" "$to" &
	exec socat "$listen" "$to"
	;;
lost)
	timeout 2.5 socat "$listen" "$to"
	exec sleep 3600
	;;
tls) exec socat "OPENSSL-LISTEN:$port,bind=0.0.0.0,reuseaddr,fork,verify=0,cert=$APP_TLS/cert.pem,key=$APP_TLS/key.pem" "$to" ;;
*)
	echo "no such mistake: $1" >&2
	exit 64
	;;
esac
