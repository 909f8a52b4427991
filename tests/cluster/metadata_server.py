"""What an instance can ask about itself, at the address of AWS: runs on a host, which has that address for itself.

Usage: python3 metadata_server.py TYPE LIFE_CYCLE
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ADDRESS, TOKEN = "169.254.169.254", "a-token"
ANSWERS = dict(zip(("instance-type", "instance-life-cycle"), sys.argv[1:], strict=True))


class Metadata(BaseHTTPRequestHandler):
    """Version 2 of the service: who has not asked for a token is told nothing."""

    def do_PUT(self) -> None:
        """A token."""
        self.answer(200, TOKEN)

    def do_GET(self) -> None:
        """A fact, or that there is none, as of a notice that was not given."""
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self.answer(401, "")
        elif found := ANSWERS.get(self.path.removeprefix("/latest/meta-data/")):
            self.answer(200, found)
        else:
            self.answer(404, "")

    def answer(self, status: int, text: str) -> None:
        """Send it."""
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


ThreadingHTTPServer((ADDRESS, 80), Metadata).serve_forever()
