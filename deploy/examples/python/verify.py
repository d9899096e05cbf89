"""Postern has verified these signatures before it stored the webhook. Checking
again costs little, and the app stays safe when it is reached another way."""

import hashlib
import hmac
import json
import time

TOLERANCE = 300  # how old a Stripe signature may be, s; as in Stripe's library


class Refused(Exception):
    """A webhook whose signature does not verify; the text says why."""


def verify_stripe(secret, headers, body):
    """Checks Stripe-Signature: t=<unix seconds>,v1=<hex>, an HMAC-SHA256 over
    t + "." + body. Returns the event's id and type."""
    items = [item.strip().partition("=") for item in headers.get("Stripe-Signature", "").split(",")]
    sent_at = next((value for key, _, value in items if key == "t"), "")
    # Several v1 while a secret is rotated.
    check(secret, sent_at.encode() + b"." + body, [value for key, _, value in items if key == "v1"])
    if not (sent_at.isascii() and sent_at.isdigit()) or time.time() - int(sent_at) > TOLERANCE:
        raise Refused("the signature is too old")
    try:
        event = json.loads(body)
        return event["id"], event["type"]
    except (ValueError, KeyError, TypeError):
        raise Refused("the body is not an event") from None


def verify_github(secret, headers, body):
    """Checks X-Hub-Signature-256: sha256=<hex>, an HMAC-SHA256 over the body.
    Returns the delivery's id and the event's type."""
    check(secret, body, [headers.get("X-Hub-Signature-256", "").removeprefix("sha256=")])
    delivery = headers.get("X-GitHub-Delivery")
    if not delivery:
        raise Refused("the header X-GitHub-Delivery is missing")
    return delivery, headers.get("X-GitHub-Event", "")


def check(secret, message, signatures):
    """Raises unless one of signatures, in hex, is the HMAC-SHA256 of message."""
    if not secret:
        raise Refused("the app has no secret to check with")
    want = hmac.new(secret.encode(), message, hashlib.sha256).hexdigest().encode()
    if not any(hmac.compare_digest(want, s.encode()) for s in signatures):
        raise Refused("the signature does not match")
