'use strict';

const KEEP = 20; // webhooks on the page

// Shop remembers the latest webhooks and shows them.
exports.Shop = class Shop {
  #seen = new Set();
  #latest = []; // newest first

  // handle does what an event asks for, once, and says whether this was the first
  // time: webhooks come at least once, and sometimes twice. A real app keeps the
  // keys in its database, in the transaction that does the work.
  handle(key, event) {
    if (this.#seen.has(key)) return false;
    this.#seen.add(key);
    this.#latest.unshift({ ...event, at: new Date().toISOString().slice(11, 19) });
    this.#latest.length = Math.min(this.#latest.length, KEEP);
    return true;
  }

  page(host) {
    const rows = this.#latest.map((e) => `<tr><td>${e.at}<td>${escape(e.from)}<td>${escape(e.type)}<td>${escape(e.id)}`);
    return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shop</title>
<style>body { font: 1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }
td { padding-right: 1.5rem }</style>
<h1>Shop</h1>
<p>You reached this app as ${escape(host ?? '')}.</p>
<h2>Webhooks</h2>
${rows.length ? `<table>${rows.join('\n')}</table>` : '<p>None yet.</p>'}
</html>
`;
  }
};

function escape(text) {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}
