"""A web server, as people write it with Python's standard library.

See ../README.md for its mistakes.
"""
import os
import signal
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

mistake = sys.argv[1] if len(sys.argv) > 1 else ""
fixed = int(os.environ.get("APP_PORT", "0"))
port = fixed if mistake == "fixed" else int(os.environ.get("PORT") or fixed)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"hello from python\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET
    do_HEAD = do_GET

    def log_message(self, *_):
        pass


class OnlyIPv6(ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


def serve(host, server=ThreadingHTTPServer):
    """Listen, and end on SIGTERM."""
    s = server((host, port), Answer)
    # From another thread: shutdown waits for serve_forever to return.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=s.shutdown).start())
    print("listening on", s.server_address, flush=True)
    return s


def tether():
    sys.stdin.buffer.read()
    os._exit(1)


if os.environ.get("APP_TETHER"):
    threading.Thread(target=tether, daemon=True).start()

if mistake == "mute":
    print("waiting for the database", flush=True)
    time.sleep(3600)
elif mistake == "crash":
    print("KeyError: 'DATABASE_URL'", file=sys.stderr, flush=True)
    sys.exit(3)
elif mistake == "loopback":
    serve("127.0.0.1").serve_forever()
elif mistake == "ipv6":
    serve("::", OnlyIPv6).serve_forever()
elif mistake == "hostname":
    serve(os.environ["HOSTNAME"]).serve_forever()
elif mistake == "debugger":
    debugger = socket.create_server(("0.0.0.0", fixed))
    serve("0.0.0.0").serve_forever()
elif mistake == "lost":
    s = serve("0.0.0.0")
    threading.Thread(target=s.serve_forever, daemon=True).start()
    time.sleep(2.5)
    s.shutdown()
    s.server_close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3600)
elif mistake == "tls":
    s = serve("0.0.0.0")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = os.environ["APP_TLS"]
    context.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
    s.socket = context.wrap_socket(s.socket, server_side=True)
    s.serve_forever()
elif mistake in ("", "fixed"):
    serve("0.0.0.0").serve_forever()
else:
    sys.exit("no such mistake: " + mistake)
