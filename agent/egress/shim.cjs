// Written by postern run. Has a Node that cannot by itself use the proxy in HTTP_PROXY
// and HTTPS_PROXY: http and https with their default agents, and fetch. Where Node does
// so itself (NODE_USE_ENV_PROXY, 22.21 and 24.5 and later), or where something else has
// been put in place before, nothing is changed, but for fetch of http://.
'use strict';
(() => {
  const ours = process.env.POSTERN_PROXY;
  if (!ours) return;
  const mine = (name) => process.env[name] === ours;
  const viaHTTP = mine('HTTP_PROXY') && mine('http_proxy');
  const viaHTTPS = mine('HTTPS_PROXY') && mine('https_proxy');
  if (!viaHTTP && !viaHTTPS) return;

  let proxy;
  try { proxy = new URL(ours); } catch { return; }
  const net = require('net');
  const http = require('http');
  const https = require('https');
  const port = Number(proxy.port);
  const host = proxy.hostname.replace(/^\[|\]$/g, '');

  const except = (process.env.NO_PROXY || '').toLowerCase().split(/[\s,]+/).filter(Boolean);
  // past reports whether a host is not for the proxy.
  const past = (name, itsPort) => {
    name = String(name || 'localhost').toLowerCase().replace(/^\[|\]$/g, '');
    return /^127\./.test(name) || except.some((e) => {
      if (e === '*' || e === name || e === `${name}:${itsPort}`) return true;
      const suffix = e.replace(/^\*/, '');
      return suffix.startsWith('.') ? name.endsWith(suffix) : name.endsWith('.' + suffix) && !net.isIP(suffix);
    });
  };
  const bracketed = (name) => (net.isIPv6(name) ? `[${name}]` : name);

  // tunnel connects through the proxy: CONNECT, and done has the socket.
  const tunnel = (name, itsPort, done) => {
    const target = `${bracketed(name)}:${itsPort}`;
    const req = http.request({
      host, port, method: 'CONNECT', path: target, headers: { Host: target }, agent: false, setHost: false,
    });
    req.once('connect', (res, socket, head) => {
      if (res.statusCode !== 200) {
        socket.destroy();
        const why = res.headers['proxy-status'] || '';
        done(Object.assign(new Error(`the proxy refused CONNECT ${target}: ${res.statusCode} ${why}`), { code: 'ERR_PROXY_TUNNEL' }));
        return;
      }
      if (head.length) socket.unshift(head);
      done(null, socket);
    });
    req.once('error', done);
    req.end();
  };

  class PlainAgent extends http.Agent {
    addRequest(req, options, ...rest) {
      const itsPort = options.port || 80;
      if (options.socketPath || past(options.host, itsPort)) return super.addRequest(req, options, ...rest);
      const old = `${req.method} ${req.path} `;
      if (!/^http:\/\//i.test(req.path)) {
        const authority = bracketed(options.host) + (Number(itsPort) === 80 ? '' : `:${itsPort}`);
        req.path = `http://${authority}${req.path}`;
      }
      // With headers as a list the head has been written already.
      const now = `${req.method} ${req.path} `;
      if (typeof req._header === 'string' && req._header.startsWith(old)) {
        req._header = now + req._header.slice(old.length);
      }
      const first = req.outputData && req.outputData[0];
      if (first && typeof first.data === 'string' && first.data.startsWith(old)) {
        const longer = now.length - old.length;
        first.data = now + first.data.slice(old.length);
        req.outputSize += longer;
      }
      return super.addRequest(req, { ...options, host, hostname: host, port, servername: undefined }, ...rest);
    }
  }

  class TunnelAgent extends https.Agent {
    createConnection(options, done) {
      if (options.socketPath || past(options.host, options.port)) return super.createConnection(options, done);
      tunnel(options.host, options.port, (err, socket) => {
        if (err) { done(err); return; }
        try {
          done(null, super.createConnection({ ...options, socket }));
        } catch (e) {
          socket.destroy();
          done(e);
        }
      });
      return undefined;
    }
  }

  const like = (agent) => ({ keepAlive: agent.keepAlive, scheduling: agent.scheduling, timeout: agent.options && agent.options.timeout });
  const untouched = (agent, kind) => agent && agent.constructor === kind && !(agent.options && agent.options.proxyEnv);
  if (viaHTTP && untouched(http.globalAgent, http.Agent)) http.globalAgent = new PlainAgent(like(http.globalAgent));
  if (viaHTTPS && untouched(https.globalAgent, https.Agent)) https.globalAgent = new TunnelAgent(like(https.globalAgent));
  try { require('module').syncBuiltinESMExports(); } catch { /* an old one has none */ }

  // fetch is undici, which Node loads when it is first needed, and keeps to itself but
  // for the dispatcher that all its calls go through.
  const key = Symbol.for('undici.globalDispatcher.1');
  const native = globalThis.fetch;
  // plainly has a dispatcher send http:// in absolute form: a rule for http:// does not
  // let a CONNECT through, in which nobody sees the requests.
  const plainly = (dispatcher, plain) => {
    const dispatch = dispatcher.dispatch.bind(dispatcher);
    dispatcher.dispatch = (options, handler) => {
      const to = new URL(String(options.origin));
      if (!viaHTTP || to.protocol !== 'http:' || past(to.hostname, to.port || 80)) return dispatch(options, handler);
      return plain.dispatch({
        ...options, origin: proxy.origin, path: to.origin + options.path, headers: withHost(options.headers, to.host),
      }, handler);
    };
  };
  // withHost adds the Host field, in whichever of its forms the headers come.
  const withHost = (headers, value) => {
    if (Array.isArray(headers)) {
      return headers.some((h, i) => i % 2 === 0 && String(h).toLowerCase() === 'host') ? headers : [...headers, 'host', value];
    }
    return { host: value, ...(headers || {}) };
  };
  if (globalThis[key] !== undefined) return; // somebody's own
  if (typeof native !== 'function') return;
  let installed = false;
  const install = () => {
    installed = true;
    if (globalThis[key] === undefined) void globalThis.Headers; // loads it
    const direct = globalThis[key];
    if (direct && direct.constructor.name === 'EnvHttpProxyAgent') {
      // Node does it itself, and sends http:// through CONNECT as well.
      const inner = Object.getOwnPropertySymbols(direct).map((s) => direct[s]).find((v) => v && v.constructor && v.constructor.name === 'Agent');
      if (inner) plainly(direct, new inner.constructor());
      return;
    }
    if (!direct || direct.constructor.name !== 'Agent') return;
    const Agent = direct.constructor;
    const tls = require('tls');
    const plain = new Agent();
    const tunneled = new Agent({
      connect(options, done) {
        const itsPort = options.port || 443;
        tunnel(options.hostname.replace(/^\[|\]$/g, ''), itsPort, (err, socket) => {
          if (err) { done(err); return; }
          const servername = options.servername || (net.isIP(options.hostname) ? '' : options.hostname);
          const secure = tls.connect({ socket, servername, ALPNProtocols: ['http/1.1'] });
          secure.once('secureConnect', () => { secure.removeListener('error', done); done(null, secure); });
          secure.once('error', done);
        });
      },
    });
    const dispatch = direct.dispatch.bind(direct);
    direct.dispatch = (options, handler) => {
      const to = new URL(String(options.origin));
      if (!viaHTTPS || to.protocol !== 'https:' || past(to.hostname, to.port || 443)) return dispatch(options, handler);
      return tunneled.dispatch(options, handler);
    };
    plainly(direct, plain);
  };
  const fetch = function fetch(input, init) {
    if (!installed) {
      try { install(); } catch { /* then it goes as it would have gone */ }
    }
    return native.call(this, input, init);
  };
  globalThis.fetch = fetch;
})();
