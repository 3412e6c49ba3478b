"""Serves what standin.App is on an inherited Unix socket, with the habits of the
real server that matter to a client: one event loop for everybody, idle
connections closed after 5 s, SIGTERM that waits for the running requests."""
import http.server
import signal
import socket
import socketserver
import threading


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False  # server_close waits for them

    def __init__(self, app, fd):
        self.app = app
        socketserver.BaseServer.__init__(self, "worker", Handler)
        self.socket = socket.socket(fileno=fd)

    def get_request(self):
        conn, _ = self.socket.accept()
        conn.settimeout(5)
        return conn, ("client", 0)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "stand-in"

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.connection.settimeout(None)
        self.server.app.handle(self, self.command, self.path, body)
        self.connection.settimeout(5)

    do_GET = do_POST = handle_one

    def reply(self, status, body, content_type="application/json", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, lines):
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


def run(app, fd, log_level):
    server = Server(app, fd)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    app.shutdown()
