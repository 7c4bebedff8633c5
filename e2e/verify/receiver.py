"""A subscriber that trusts nobody: verifies each webhook with the Standard Webhooks reference library.

Prints "listening PORT" once, then "verified BODY_SHA256 WEBHOOK_ID" or "refused REASON" for each request.
"""

import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(sys.argv[1])
OUTPUT = threading.Lock()


def say(*words):
    with OUTPUT:
        print(*words)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            WEBHOOK.verify(body, dict(self.headers))
            say("verified", hashlib.sha256(body).hexdigest(), self.headers["webhook-id"])
            status = 204
        except WebhookVerificationError as error:
            say("refused", error)
            status = 401
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Receiver)
say("listening", server.server_port)
server.serve_forever()
