// Postern has verified these signatures before it stored the webhook. Checking
// again costs little, and the app stays safe when it is reached another way.
'use strict';

const { createHmac, timingSafeEqual } = require('node:crypto');

const TOLERANCE = 300; // how old a Stripe signature may be, s; as in Stripe's library

// verifyStripe checks Stripe-Signature: t=<unix seconds>,v1=<hex>, an
// HMAC-SHA256 over t + "." + body. It returns the event or throws.
exports.verifyStripe = function (secret, headers, body, now = Date.now() / 1000) {
  const items = (headers['stripe-signature'] || '').split(',').map((item) => item.trim().split('='));
  const sentAt = items.find(([key]) => key === 't')?.[1] ?? '';
  // Several v1 while a secret is rotated.
  const signatures = items.filter(([key]) => key === 'v1').map(([, value]) => value);
  const signed = Buffer.concat([Buffer.from(`${sentAt}.`), body]);
  check(secret, signed, signatures);
  if (!/^\d+$/.test(sentAt) || now - Number(sentAt) > TOLERANCE) throw new Error('the signature is too old');
  const event = JSON.parse(body);
  if (typeof event?.id !== 'string') throw new Error('the body is not an event');
  return { from: 'stripe', id: event.id, type: String(event.type) };
};

// verifyGitHub checks X-Hub-Signature-256: sha256=<hex>, an HMAC-SHA256 over the
// body. It returns the event or throws.
exports.verifyGitHub = function (secret, headers, body) {
  check(secret, body, [(headers['x-hub-signature-256'] || '').replace(/^sha256=/, '')]);
  const id = headers['x-github-delivery'];
  if (!id) throw new Error('the header X-GitHub-Delivery is missing');
  return { from: 'github', id, type: headers['x-github-event'] || '' };
};

// check throws unless one of signatures, in hex, is the HMAC-SHA256 of message.
function check(secret, message, signatures) {
  if (!secret) throw new Error('the app has no secret to check with');
  const want = createHmac('sha256', secret).update(message).digest();
  const matches = signatures.filter((hex) => {
    const got = Buffer.from(hex ?? '', 'hex');
    return got.length === want.length && timingSafeEqual(got, want);
  });
  if (matches.length === 0) throw new Error('the signature does not match');
}
