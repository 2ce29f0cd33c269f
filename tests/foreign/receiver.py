"""A receiver in a process of its own that knows webhooks only from other people's libraries.

Arguments: the secret and a ``whpk_`` key. Answers with a letter a verifier, y or n: PyPI's standardwebhooks
and svix at /, and at /v1a the ed25519 of cryptography, as none of the libraries verifies that scheme.
"""

import base64
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import standardwebhooks.webhooks
import svix.webhooks
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SECRET, PUBLIC_KEY = sys.argv[1:]


def by_standardwebhooks(headers, body):
    try:
        standardwebhooks.webhooks.Webhook(SECRET).verify(body, headers)
    except standardwebhooks.webhooks.WebhookVerificationError:
        return "n"
    return "y"


def by_svix(headers, body):
    try:
        svix.webhooks.Webhook(SECRET).verify(body, headers)
    except svix.webhooks.WebhookVerificationError:
        return "n"
    return "y"


def by_ed25519(headers, body):
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(PUBLIC_KEY.removeprefix("whpk_")))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    for item in headers["webhook-signature"].split():
        scheme, _, signature = item.partition(",")
        if scheme == "v1a":
            try:
                key.verify(base64.b64decode(signature), content)
                return "y"
            except InvalidSignature:
                pass
    return "n"


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers["content-length"]))
        verifiers = [by_ed25519] if self.path == "/v1a" else [by_standardwebhooks, by_svix]
        answer = "".join(verifier(headers, body) for verifier in verifiers).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
