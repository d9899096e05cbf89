#!/bin/sh
# Puts "exec postern run --" in front of the web process's command in a Procfile,
# and prints what it changed. Done twice it is done once.
#
#	sh autowrap.sh PROCFILE
#
# The agent runs one program and no shell. A line that needs a shell is refused
# and not guessed at: wrapping only its first command would be worse than nothing.
set -eu

procfile=${1:?usage: autowrap.sh PROCFILE}
name='[[:space:]]*web[[:space:]]*:[[:space:]]*'

die() {
	echo "!     POSTERN_AUTOWRAP=1: $1" >&2
	shift
	for line; do echo "      $line" >&2; done
	exit 1
}

[ -f "$procfile" ] || die "there is no Procfile whose web process could be wrapped" \
	"Write one: web: exec postern run -- COMMAND"
command=$(sed -n "s/^$name//p" "$procfile" | tail -n 1 | tr -d '\r')
[ -n "$command" ] || die "the Procfile has no web process" \
	"Write one: web: exec postern run -- COMMAND"

case " $command" in
*[\ /]"postern run "*)
	echo "       The web process is wrapped already: $command"
	exit 0
	;;
esac

# What a shell would do is looked for outside of quotes.
bare=$(printf '%s\n' "$command" | sed -e "s/'[^']*'//g" -e 's/"[^"]*"//g')
case $bare in
*[\;\&\|\(\<\>\`\'\"]*) shell=yes ;;
'. '* | 'cd '* | 'source '* | 'eval '* | 'export '* | 'set '* | 'if '* | 'for '* | 'while '* | '{ '* | '! '*) shell=yes ;;
*) shell=no ;;
esac
[ "$shell" = no ] || die "the web process needs a shell and cannot be wrapped by itself:" \
	"web: $command" \
	"Put it into a script that ends with \"exec PROGRAM …\", and run that:" \
	"web: exec postern run -- bin/web"

rest=${command#exec }
first=${rest%% *}
case ${first%%=*} in
"$first" | '' | *[!A-Za-z0-9_]*) ;;
*) rest="env $rest" ;; # FOO=1 node server.js
esac

new=$procfile.postern
trap 'rm -f "$new"' EXIT
# awk takes backslashes in -v for escapes, and in ENVIRON for what they are.
WRAPPED="web: exec postern run -- $rest" awk -v name="^$name" \
	'$0 ~ name { print ENVIRON["WRAPPED"]; next } { print }' "$procfile" >"$new"
echo "       POSTERN_AUTOWRAP=1 changes the Procfile:"
diff -U 0 "$procfile" "$new" | sed -n '/^[-+][^-+]/s/^/       /p'
cat "$new" >"$procfile" # keeps its mode and owner
