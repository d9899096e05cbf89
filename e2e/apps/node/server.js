// A web server, as people write it in Node. See ../README.md for its mistakes.
'use strict'
const fs = require('fs')
const http = require('http')
const https = require('https')

const mistake = process.argv[2] || ''
const fixed = Number(process.env.APP_PORT)
const port = mistake === 'fixed' ? fixed : Number(process.env.PORT || fixed)

if (process.env.APP_TETHER) process.stdin.on('end', () => process.exit(1)).resume()

function answer(req, res) {
  req.resume()
  req.on('end', () => res.end('hello from node\n'))
}

// Longer than any router in front keeps its idle connections.
const options = { keepAliveTimeout: 95000 }

function serve(server, where) {
  server.keepAliveTimeout = options.keepAliveTimeout
  server.on('error', (err) => {
    console.error(err)
    process.exit(1)
  })
  server.listen(where, () => console.log('listening on', server.address()))
  process.on('SIGTERM', () => server.close(() => process.exit(0)))
  return server
}

switch (mistake) {
  case 'loopback':
    serve(http.createServer(answer), { host: '127.0.0.1', port })
    break
  case 'ipv6':
    serve(http.createServer(answer), { host: '::', port, ipv6Only: true })
    break
  case 'hostname':
    serve(http.createServer(answer), { host: process.env.HOSTNAME, port })
    break
  case 'mute':
    console.log('waiting for the database')
    setInterval(() => {}, 1000)
    break
  case 'crash':
    console.error('Error: DATABASE_URL is not set')
    process.exit(3)
    break
  case 'debugger':
    http.createServer((req, res) => res.end('debugger\n')).listen(fixed, '0.0.0.0')
    serve(http.createServer(answer), { host: '0.0.0.0', port })
    break
  case 'lost': {
    const server = serve(http.createServer(answer), { host: '0.0.0.0', port })
    setTimeout(() => {
      server.close()
      server.closeAllConnections()
    }, 2500)
    setInterval(() => {}, 1000)
    break
  }
  case 'tls': {
    const dir = process.env.APP_TLS
    const pem = { cert: fs.readFileSync(dir + '/cert.pem'), key: fs.readFileSync(dir + '/key.pem') }
    serve(https.createServer(pem, answer), { host: '0.0.0.0', port })
    break
  }
  case '':
  case 'fixed':
    serve(http.createServer(answer), { host: '0.0.0.0', port })
    break
  default:
    console.error('no such mistake:', mistake)
    process.exit(64)
}
