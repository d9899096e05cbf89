# frozen_string_literal: true

# Puma reads this file by itself.

# All addresses, because the routers of most platforms look for that. Where only
# the agent is to reach the app, HOST is 127.0.0.1.
bind "tcp://#{ENV.fetch("HOST", "0.0.0.0")}:#{ENV.fetch("PORT", "3000")}"

# One process, because the app remembers in memory what it has handled.
workers 0
threads 1, 8

# Longer than the 90 s for which some routers keep connections: they would send a
# request into one that is being closed.
persistent_timeout 95

# For requests in flight after SIGTERM, s; less than a platform's grace period, of
# which Heroku's is 30 s.
force_shutdown_after 8

# Puma ends itself with the signal after SIGTERM; exit code 0 says that all is done.
raise_exception_on_sigterm false
