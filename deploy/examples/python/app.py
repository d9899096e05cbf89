"""A small complete app to put behind Postern: a page, and webhooks of Stripe and
GitHub. It is a Flask app behind gunicorn, whose settings are in gunicorn.conf.py,
and knows nothing of Postern but one header, without which it works as well.
"""

import os
import sys

from flask import Flask, Response, render_template_string, request

from shop import Shop
from verify import Refused, verify_github, verify_stripe

MAX_BODY = 1 << 20  # of a webhook, bytes

app = Flask(__name__)
shop = Shop()


@app.get("/")
def page():
    return render_template_string(PAGE, host=request.host, latest=shop.latest())


@app.get("/healthz")
def healthz():
    return Response("ok\n", mimetype="text/plain")


@app.post("/webhooks/stripe")
def stripe():
    return take("stripe", lambda body: verify_stripe(os.environ.get("STRIPE_WHSEC"), request.headers, body))


@app.post("/webhooks/github")
def github():
    return take("github", lambda body: verify_github(os.environ.get("GITHUB_SECRET"), request.headers, body))


def take(sender, verify):
    """Answers 2xx only when the event was handled: anything else makes the
    sender, or Postern, try again."""
    body = request.stream.read(MAX_BODY + 1)  # byte for byte: that is what was signed
    if len(body) > MAX_BODY:
        return Response("the body is too long\n", status=413, mimetype="text/plain")
    try:
        event_id, kind = verify(body)
    except Refused as reason:
        log(f'webhook refused from={sender} reason="{reason}"')
        return Response(f"{reason}\n", status=401, mimetype="text/plain")
    # The same for every delivery of one event.
    key = f"{sender}/{request.headers.get('Idempotency-Key', event_id)}"
    word = "handled" if shop.handle(key, sender, kind, event_id) else "known already"
    log(f"webhook {word} from={sender} id={event_id} type={kind}")
    return Response(status=204)


def log(line):
    print(line, file=sys.stdout, flush=True)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shop</title>
<style>body { font: 1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }
td { padding-right: 1.5rem }</style>
<h1>Shop</h1>
<p>You reached this app as {{ host }}.</p>
<h2>Webhooks</h2>
{% if latest %}<table>{% for e in latest %}
<tr><td>{{ e.at.strftime("%H:%M:%S") }}<td>{{ e.sender }}<td>{{ e.kind }}<td>{{ e.id }}{% endfor %}
</table>{% else %}<p>None yet.</p>{% endif %}
</html>
"""
