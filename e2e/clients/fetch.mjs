import http from 'node:http';
import https from 'node:https';

const secure = process.env.E2E_HTTPS;
const clear = process.env.E2E_HTTP;

// What http and https modules give, as fetch gives it.
function get(module, url, options = {}) {
  return new Promise((resolve, reject) => {
    const request = module.get(url, options, (answer) => {
      let body = '';
      answer.setEncoding('utf8');
      answer.on('data', (chunk) => { body += chunk; });
      answer.on('end', () => resolve([answer.statusCode, body]));
    });
    request.on('error', reject);
  });
}

async function fetched(url, options) {
  const answer = await fetch(url, options);
  return [answer.status, await answer.text()];
}

const calls = [
  ['fetch-https', () => fetched(secure)],
  ['fetch-http', () => fetched(clear)],
  ['fetch-post', () => fetched(secure, { method: 'POST', body: 'x'.repeat(100_000) })],
  ['https.get', () => get(https, secure)],
  ['http.get', () => get(http, clear)],
  ['https.agent', () => get(https, secure, { agent: https.globalAgent })],
];
let failed = false;
for (const [name, call] of calls) {
  try {
    const [status, body] = await call();
    console.log(name, status, body);
  } catch (error) {
    failed = true;
    console.log(name, 'failed', error.message, error.cause?.message ?? '');
  }
}
process.exitCode = failed ? 1 : 0;
