"""gunicorn reads this file from the folder it is started in."""

import os

# All addresses, because the routers of most platforms look for that. Where only
# the agent is to reach the app, HOST is 127.0.0.1.
bind = f"{os.environ.get('HOST', '0.0.0.0')}:{os.environ.get('PORT', '3000')}"

# One process, because the app remembers in memory what it has handled.
workers = 1
threads = 8

# gunicorn closes idle connections after 2 s; the routers of some platforms keep
# theirs for 90 s and would send a request into one that is being closed.
keepalive = 95

# For requests in flight after SIGTERM; less than a platform's grace period, of
# which Heroku's is 30 s.
graceful_timeout = 8


def when_ready(server):
    print("listening on port", server.address[0][1], flush=True)


def on_exit(server):
    print("done", flush=True)
