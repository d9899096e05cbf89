# The Postern agent's folder on the PATH. Sourced by the shell of every process
# of this app, consoles and ps:exec included, so it does no more than that.
case ":${PATH:-}:" in
*":${HOME:-/app}/.postern/bin:"*) ;;
*) export PATH="${HOME:-/app}/.postern/bin${PATH:+:$PATH}" ;;
esac
