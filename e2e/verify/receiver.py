"""A subscriber that trusts nobody: verifies each webhook with the reference library of Standard Webhooks, with the SDK of
Svix, and with another library what these do not know, signatures by public key.

Prints "listening PORT" once, then "verified BODY_SHA256 SIGNATURES WEBHOOK_ID" or "refused REASON" for each request.
"""

import base64
import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import standardwebhooks
import svix.webhooks
from ecdsa import BadSignatureError, Ed25519, VerifyingKey
from standardwebhooks import WebhookVerificationError

KEYS = sys.argv[1].split(",")
LIBRARIES = [standardwebhooks.Webhook, svix.webhooks.Webhook]
OUTPUT = threading.Lock()


def say(*words):
    with OUTPUT:
        print(*words)


def verify(body, headers):
    """Every key has signed, for every library, or it raises."""
    for key in KEYS:
        if key.startswith("whpk_"):
            verify_public(key.removeprefix("whpk_"), body, headers)
        else:
            for library in LIBRARIES:
                verify_secret(library(key), body, dict(headers))


def verify_secret(webhook, body, headers):
    webhook.verify(body, headers)
    # A check that lets everything pass would show nothing.
    try:
        webhook.verify(body + b" ", headers)
    except WebhookVerificationError:
        return
    raise AssertionError("a changed body verifies")


def verify_public(key, body, headers):
    key = VerifyingKey.from_string(base64.b64decode(key), curve=Ed25519)
    message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signatures = [text.removeprefix("v1a,") for text in headers["webhook-signature"].split(" ") if text.startswith("v1a,")]
    if not signatures:
        raise WebhookVerificationError("no v1a signature")
    for signature in signatures:
        try:
            if key.verify(base64.b64decode(signature), message):
                return
        except BadSignatureError:
            pass
    raise WebhookVerificationError("no v1a signature matches")


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            verify(body, self.headers)
            count = len(self.headers["webhook-signature"].split(" "))
            say("verified", hashlib.sha256(body).hexdigest(), count, self.headers["webhook-id"])
            status = 204
        except (WebhookVerificationError, AssertionError) as error:
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
