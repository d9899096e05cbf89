# frozen_string_literal: true

require "json"
require "openssl"

# Postern has verified these signatures before it stored the webhook. Checking
# again costs little, and the app stays safe when it is reached another way.
module Verify
  # A webhook whose signature does not verify; the message says why.
  class Refused < StandardError; end

  TOLERANCE = 300 # how old a Stripe signature may be, s; as in Stripe's library

  module_function

  # stripe checks Stripe-Signature: t=<unix seconds>,v1=<hex>, an HMAC-SHA256 over
  # t + "." + body. It returns the event's id and type.
  def stripe(secret, env, body)
    items = env.fetch("HTTP_STRIPE_SIGNATURE", "").split(",").map { |item| item.strip.split("=", 2) }
    sent_at = items.assoc("t")&.last.to_s
    # Several v1 while a secret is rotated.
    check(secret, "#{sent_at}.".b + body.b, items.select { |key, _| key == "v1" }.map(&:last))
    raise Refused, "the signature is too old" if !sent_at.match?(/\A\d+\z/) || Time.now.to_i - sent_at.to_i > TOLERANCE

    event = JSON.parse(body)
    [event.fetch("id"), event.fetch("type")]
  rescue JSON::ParserError, KeyError, NoMethodError, TypeError
    raise Refused, "the body is not an event"
  end

  # github checks X-Hub-Signature-256: sha256=<hex>, an HMAC-SHA256 over the body.
  # It returns the delivery's id and the event's type.
  def github(secret, env, body)
    check(secret, body, [env.fetch("HTTP_X_HUB_SIGNATURE_256", "").delete_prefix("sha256=")])
    delivery = env["HTTP_X_GITHUB_DELIVERY"] or raise Refused, "the header X-GitHub-Delivery is missing"
    [delivery, env.fetch("HTTP_X_GITHUB_EVENT", "")]
  end

  # check raises unless one of signatures, in hex, is the HMAC-SHA256 of message.
  def check(secret, message, signatures)
    raise Refused, "the app has no secret to check with" if secret.to_s.empty?

    want = OpenSSL::HMAC.hexdigest("SHA256", secret, message)
    raise Refused, "the signature does not match" if signatures.none? { |got| OpenSSL.secure_compare(got.to_s, want) }
  end
end
