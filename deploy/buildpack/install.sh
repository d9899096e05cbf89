#!/bin/sh
# Downloads the Postern agent, a static binary, checks it against a pinned
# SHA-256, and puts it into a folder as "postern". The buildpacks beside it call
# it, and so can any build command. It runs in sh, and needs curl.
#
#	sh install.sh [FOLDER]         default ./bin
#	sh install.sh --pinned         prints version, architecture and checksum of what
#	                               would be installed, and does nothing
#
#	POSTERN_AGENT_VERSION   which release; default: the last one in agent.sums
#	POSTERN_AGENT_URL       where releases are, for a mirror; http, https or file.
#	                        The file is <URL>/<version>/postern-linux-<arch>
#	POSTERN_AGENT_SHA256    the file's checksum, instead of the one in agent.sums:
#	                        for a version that is not there, such as your own build
#	POSTERN_AGENT_ARCH      amd64 or arm64; default: this machine's
#	POSTERN_AGENT_CACHE     a folder that outlives the build; default none
#
# The rule to know: nothing is installed whose checksum was not known before.
set -eu

RELEASES=https://github.com/posternhq/postern/releases/download
ATTEMPTS=3  # downloads that are tried
CONNECT=10  # seconds for a connection
TRANSFER=60 # seconds for one attempt, all in all

main() {
	folder=${1:-bin}
	base=${POSTERN_AGENT_URL:-$RELEASES}
	base=${base%/}
	sums=$(dirname -- "$0")/agent.sums # there is none when the script comes through a pipe
	choose_arch
	choose_version
	choose_sum
	if [ "$folder" = --pinned ]; then
		echo "$version $arch $sum"
		exit
	fi
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM
	cached="${POSTERN_AGENT_CACHE:-$work}/postern-$version-linux-$arch"
	if [ -f "$cached" ] && [ "$(sum_of "$cached")" = "$sum" ]; then
		echo "postern $version ($arch) from the cache"
	else
		download "$base/$version/postern-linux-$arch" "$work/postern"
		if [ -n "${POSTERN_AGENT_CACHE:-}" ]; then
			mkdir -p "$POSTERN_AGENT_CACHE"
			rm -f "$POSTERN_AGENT_CACHE"/postern-*-linux-* # older ones
		fi
		mv "$work/postern" "$cached"
	fi
	mkdir -p "$folder"
	cp "$cached" "$folder/.postern.new"
	chmod 755 "$folder/.postern.new"
	mv -f "$folder/.postern.new" "$folder/postern"
	echo "postern $version ($arch) installed, sha256 $sum"
}

# die ends with what is wrong and, line by line, what to do.
die() {
	echo "!     $1" >&2
	shift
	for line; do echo "      $line" >&2; done
	exit 1
}

choose_arch() {
	arch=${POSTERN_AGENT_ARCH:-$(uname -m)}
	case $arch in
	amd64 | x86_64) arch=amd64 ;;
	arm64 | aarch64) arch=arm64 ;;
	*) die "there is no agent for the architecture $arch" \
		"It exists for amd64 (x86_64) and arm64 (aarch64)." ;;
	esac
}

choose_version() {
	version=${POSTERN_AGENT_VERSION:-}
	if [ -z "$version" ] && [ -f "$sums" ]; then
		version=$(sed -e 's/#.*//' "$sums" | awk 'NF == 3 { last = $1 } END { print last }')
	fi
	case $version in
	'') die "there is no version to install" \
		"No release is pinned in ${sums##*/}. Set POSTERN_AGENT_VERSION, and for a version" \
		"that is not in that file POSTERN_AGENT_SHA256 and, for your own build," \
		"POSTERN_AGENT_URL. See deploy/buildpack/README.md." ;;
	*[!A-Za-z0-9._+-]* | .*) die "POSTERN_AGENT_VERSION=$version is not a version, such as v1.2.3" ;;
	esac
}

choose_sum() {
	sum=${POSTERN_AGENT_SHA256:-}
	if [ -z "$sum" ] && [ -f "$sums" ]; then
		sum=$(sed -e 's/#.*//' "$sums" | awk -v v="$version" -v a="$arch" 'NF == 3 && $1 == v && $2 == a { print $3; exit }')
	fi
	[ -n "$sum" ] || die "no checksum is known for postern $version ($arch)" \
		"Known are:$(known)." \
		"Set POSTERN_AGENT_VERSION to one of them, use a newer buildpack," \
		"or set POSTERN_AGENT_SHA256 to the checksum of the file you mean."
	sum=$(printf %s "$sum" | tr A-F a-f)
	case $sum in *[!0-9a-f]*) sum='' ;; esac
	[ "${#sum}" = 64 ] || die "the checksum of postern $version ($arch) is not a SHA-256" \
		"Expected are 64 hexadecimal digits, as sha256sum prints them."
}

known() {
	[ -f "$sums" ] && sed -e 's/#.*//' "$sums" | awk 'NF == 3 { printf " %s (%s)", $1, $2; n++ } END { if (!n) printf " none yet" }' || printf ' none'
}

# download fetches $1 into $2 and checks it.
download() {
	command -v curl >/dev/null || die "curl is not there to download the agent with" \
		"Install it in this image, or put the agent's binary into your repository."
	schemes='=https'
	case $1 in
	https://*) ;;
	http://*) schemes='=http,https' ;;
	file://*) schemes='=file' ;;
	*) die "POSTERN_AGENT_URL is not an address: expected http://, https:// or file://" ;;
	esac
	shown=$(printf %s "$1" | sed 's,://[^/]*@,://…@,') # a mirror's password is nobody's business
	attempt=1
	while :; do
		echo "downloading $shown"
		code=0
		curl --fail --silent --show-error --location --max-redirs 5 \
			--proto "$schemes" --proto-redir "$schemes" \
			--connect-timeout "$CONNECT" --max-time "$TRANSFER" --max-filesize 67108864 \
			--output "$2" "$1" 2>"$work/reason" || code=$?
		[ "$code" != 0 ] || break
		reason=$(tail -n 1 "$work/reason")
		# 22 is an answer of 400 or more, of which only 429 and 5xx get better by
		# themselves; 37 is a file that is not there; the rest is the network.
		case $code:$reason in
		22:*' 429'*) ;;
		37:* | 22:*' 4'[0-9][0-9]*) give_up ;;
		esac
		[ "$attempt" -lt "$ATTEMPTS" ] || give_up
		echo "      $reason; trying again" >&2
		sleep "$attempt"
		attempt=$((attempt + 1))
	done
	got=$(sum_of "$2")
	[ "$got" = "$sum" ] || die "the file at $shown is not postern $version: its checksum is wrong" \
		"expected sha256 $sum" \
		"got             $got" \
		"Nothing was installed. Either the file was changed on its way or at its place, or" \
		"the pinned checksum belongs to another build. Do not go on before you know which."
}

give_up() {
	die "the agent could not be downloaded: $reason" \
		"from $shown" \
		"Check that this version exists and that the build may reach that host, and build" \
		"again. A mirror: POSTERN_AGENT_URL. The release that runs now stays as it is."
}

sum_of() {
	if command -v sha256sum >/dev/null; then
		sha256sum <"$1" | cut -c 1-64
	else
		shasum -a 256 <"$1" | cut -c 1-64
	fi
}

main "$@"
