"""The served lab: the page and its answers on this machine alone, by the server of the standard library.

It listens on 127.0.0.1. A request must name this host, so that no other site's name leads here, and a request for an
answer must be JSON, of bounded size, and carry the random token of the page's address. The token stands behind the #,
which a browser sends to no server. Only the page's own files, listed when the server starts, can be read.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from minivit.fast.blas_threads import limit_threads
from minivit.fork import Lock
from minivit.io.text import printable
from minivit.lab.lab import Lab
from minivit.lab.wire import packed

PAGE = Path(__file__).parent / "page"
TOKEN_HEADER = "X-Lab-Token"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LEAST_BODY = 64 * 1024  # bytes of a request, besides the pixels of a large image
_PATIENCE = 10.0  # seconds without data from a browser
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that gets a plain error."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Server(ThreadingHTTPServer):
    """The server of one lab, on a free port of 127.0.0.1 unless another is given.

    Args:
        make: builds the lab, in a thread of its own; it is given a function that takes lines of progress.
        port: 0 is a free one.
        site: address of the built documentation, to which the page links, or "".
    """

    daemon_threads = True

    def __init__(self, make: Callable[[Callable[[str], None]], Lab], port: int = 0, site: str = "") -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.host = f"127.0.0.1:{self.server_port}"
        self.site = site
        self.files = {f"/{path.name}": path for path in PAGE.iterdir() if path.suffix in _TYPES}
        self.files["/"] = PAGE / "index.html"
        self.lab: Lab | None = None
        self.progress, self.failure = "loading the model", ""
        self._make, self._turn = make, Lock()

    @property
    def address(self) -> str:
        """The page's address, with the token."""
        return f"http://{self.host}/#{self.token}"

    def serve(self) -> None:
        """Make the lab and serve it, until `shutdown`. BLAS runs one thread: its products are small here."""
        threading.Thread(target=self._prepare, daemon=True).start()
        self.serve_forever(poll_interval=0.1)

    def _prepare(self) -> None:
        try:
            self.lab = self._make(self._report)
        except Exception as error:  # the page shows it
            self.failure = printable(str(error)) or type(error).__name__

    def _report(self, line: str) -> None:
        self.progress = printable(line)

    @property
    def most(self) -> int:
        """Bytes of a request's body: the pixels as base64, and some room."""
        pixels = 1 if self.lab is None else self.lab.size[0] * self.lab.size[1] * self.lab.size[2]
        return _LEAST_BODY + 6 * pixels

    def answer(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, one at a time; until the lab is made, only its state."""
        if name == "state":
            return {
                "ready": self.lab is not None,
                "progress": self.progress,
                "failure": self.failure,
                "site": self.site,
            }
        if self.lab is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, self.failure or f"the lab is not ready: {self.progress}")
        with self._turn, limit_threads(1):
            return self.lab.answer(name, request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its connection is no error to print."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _PATIENCE
    # head and body leave in one packet: in two, the second waits for an acknowledgment, which takes 40 ms
    wbufsize, disable_nagle_algorithm = 1 << 16, True
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "minivit-lab", ""

    def do_GET(self) -> None:
        self._guarded(self._file)

    def do_POST(self) -> None:
        self._guarded(self._answer)

    def _guarded(self, run: Callable[[], tuple[str, bytes]]) -> None:
        try:
            self._check_host()
            kind, body = run()
            self._send(HTTPStatus.OK, kind, body)
        except Refused as refused:
            self._refuse(refused.status, str(refused))
        except LookupError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error.args[0]))
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # a fault of the program: the lab goes on
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def _check_host(self) -> None:
        if self.headers.get_all("Host") != [self.server.host]:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, f"this server is http://{self.server.host}")
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{self.server.host}"):
            raise Refused(HTTPStatus.FORBIDDEN, "requests from other sites are refused")

    def _file(self) -> tuple[str, bytes]:
        path = self.server.files.get(self.path)
        if path is None:
            raise Refused(HTTPStatus.NOT_FOUND, "the lab has no such file")
        return f"{_TYPES[path.suffix]}; charset=utf-8", path.read_bytes()

    def _answer(self) -> tuple[str, bytes]:
        given = self.headers.get(TOKEN_HEADER, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self.server.token.encode()):  # bytes: text must be ASCII there
            raise Refused(HTTPStatus.FORBIDDEN, "the token is wrong: open the address that `minivit lab` printed")
        if not self.path.startswith("/api/"):
            raise Refused(HTTPStatus.NOT_FOUND, "answers are below /api/")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request must be application/json")
        request = _parsed(self._body())
        answer = self.server.answer(self.path.removeprefix("/api/"), request)
        return "application/json", json.dumps(packed(answer), allow_nan=False, separators=(",", ":")).encode()

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length") or []
        if (
            "Transfer-Encoding" in self.headers
            or len(lengths) != 1
            or not (lengths[0].isascii() and lengths[0].isdigit())
        ):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "a request must say its Content-Length, once and in digits")
        if len(lengths[0]) > 12 or int(lengths[0]) > self.server.most:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {self.server.most:,} bytes")
        return self.rfile.read(int(lengths[0]))

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # a body may be unread
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._send(status, "application/json", json.dumps({"error": printable(reason)[:500]}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """In the standard library's own refusals (an unknown method, a header that is too long) too, plain JSON."""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _parsed(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        ValueError: if it is not one, or has a number that is not finite.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a number")

    try:
        request = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(request, dict):
        raise ValueError("the request must be a JSON object")
    return request
