// A small complete app to put behind Postern: it listens on PORT, shows a page,
// takes webhooks of Stripe and GitHub, and ends in order on SIGTERM. It uses
// Node's own modules only and knows nothing of Postern but one header, without
// which it works as well.
'use strict';

const http = require('node:http');
const { verifyStripe, verifyGitHub } = require('./verify.js');
const { Shop } = require('./shop.js');

const MAX_BODY = 1 << 20; // of a webhook, bytes
const GRACE = 8_000; // ms; less than a platform's, of which Heroku's is 30 s

const shop = new Shop();
const webhooks = {
  '/webhooks/stripe': (headers, body) => verifyStripe(process.env.STRIPE_WHSEC, headers, body),
  '/webhooks/github': (headers, body) => verifyGitHub(process.env.GITHUB_SECRET, headers, body),
};

const server = http.createServer((req, res) => {
  const path = req.url.split('?')[0];
  if (req.method === 'GET' && path === '/') return answer(res, 200, 'text/html', shop.page(req.headers.host));
  if (req.method === 'GET' && path === '/healthz') return answer(res, 200, 'text/plain', 'ok\n');
  if (req.method === 'POST' && Object.hasOwn(webhooks, path)) return takeWebhook(req, res, webhooks[path]);
  answer(res, 404, 'text/plain', 'not found\n');
});

// takeWebhook answers 2xx only when the event was handled: anything else makes
// the sender, or Postern, try again.
async function takeWebhook(req, res, verify) {
  let body;
  try {
    body = await read(req);
  } catch (err) {
    res.setHeader('Connection', 'close'); // what is left of the body is not read
    return answer(res, 413, 'text/plain', `${err.message}\n`);
  }
  try {
    const event = verify(req.headers, body);
    // The same for every delivery of one event.
    const key = `${event.from}/${req.headers['idempotency-key'] || event.id}`;
    const word = shop.handle(key, event) ? 'handled' : 'known already';
    console.log(`webhook ${word} from=${event.from} id=${event.id} type=${event.type}`);
    res.writeHead(204).end();
  } catch (err) {
    console.log(`webhook refused path=${req.url} reason=${JSON.stringify(err.message)}`);
    answer(res, 401, 'text/plain', `${err.message}\n`);
  }
}

// read is the body, byte for byte: that is what was signed.
async function read(req) {
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    size += chunk.length;
    if (size > MAX_BODY) throw new Error('the body is too long');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function answer(res, status, type, text) {
  res.writeHead(status, { 'Content-Type': `${type}; charset=utf-8` });
  res.end(text);
}

// Node closes idle connections after 5 s; the routers of some platforms keep
// theirs for 90 s and would send a request into one that is being closed.
server.keepAliveTimeout = 95_000;

const port = Number(process.env.PORT || 3000);
// All addresses, because the routers of most platforms look for that. Where only
// the agent is to reach the app, HOST is 127.0.0.1.
server.listen(port, process.env.HOST || '0.0.0.0', () => console.log(`listening on port ${port}`));

let stopping = false;
function stop() {
  if (stopping) return; // some platforms send SIGTERM more than once
  stopping = true;
  console.log('finishing what is in flight');
  setTimeout(() => process.exit(1), GRACE).unref();
  server.close(() => {
    console.log('done');
    process.exit(0);
  });
  server.closeIdleConnections();
}
process.on('SIGTERM', stop);
process.on('SIGINT', stop);
