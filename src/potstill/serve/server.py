"""A web server for one page. It serves a fixed list of files to this machine only."""

from __future__ import annotations

import errno
import json
import lzma
import os
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader, BytesIO
from pathlib import Path
from socketserver import TCPServer
from threading import BoundedSemaphore, Lock
from typing import Any, BinaryIO
from urllib.parse import unquote

from potstill.errors import PotstillError, first_line
from potstill.serve.bounded_connection import BoundedConnection
from potstill.serve.models import ServedModel, links_stay_in

STATIC = Path(__file__).parent / "static"
PACKED = ".xz"  # the runtimes of 14 and 27 MB take 2 and 4 MB in the package

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}

HEADERS = {
    # The first two isolate the page from others. Without that the browser gives it no memory for several threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The browser refuses to send anything to another server.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # the browser asks each time whether its copy is still the same
}

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class PageServer(ThreadingHTTPServer):
    """Serves the page with its models on 127.0.0.1, to this machine alone.

    Args:
        models: the models that the page runs, at most two, for the same task.
        port: 0 for any free one.
        head_seconds: how long a connection may take for its next request: the wait and all of the head together.
        answer_seconds: how long a client may take to read an answer.
        connections: how many are open at once. One more is answered with 503.

    Raises:
        PotstillError: the port is taken or not allowed, or this installation has no page.
    """

    daemon_threads = True  # the server ends even during a download
    request_queue_size = 256  # connections that wait to be accepted; with the usual 5, many at once are slow

    def __init__(
        self,
        models: Sequence[ServedModel],
        port: int = 0,
        *,
        head_seconds: float = 30,
        answer_seconds: float = 600,
        connections: int = 256,
    ) -> None:
        if not 0 <= port <= 65535:
            raise PotstillError(f"--port is {port}: it must be between 0 and 65535.")
        self.files = {f"/{path.relative_to(STATIC).as_posix()}": path for path in STATIC.rglob("*") if path.is_file()}
        if "/index.html" not in self.files:
            raise PotstillError("This installation of potstill lacks the page: build it with `make web`.")
        self.files["/"] = self.files.pop("/index.html")
        self.folders: dict[str, Path] = {}  # of the models; an installation may well link to its files
        self.head_seconds, self.answer_seconds = head_seconds, answer_seconds
        self._free = BoundedSemaphore(connections)
        described = []
        for number, model in enumerate(models):
            path = f"models/{number}/"
            folder = model.folder.resolve()  # a link to it may be turned to another model, which was not checked
            for name in model.files:
                self.files[f"/{path}{name}"] = folder / name
                self.folders[f"/{path}{name}"] = folder
            described.append(model.description(path))
        self.texts = {"/models.json": json.dumps({"models": described}).encode()}
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PotstillError(f"Port {port} is taken: give another with --port, or 0 for any free one.") from None
            raise PotstillError(f"Port {port} cannot be opened: {error.strerror or first_line(error)}.") from error

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self.server_port}/"

    def server_bind(self) -> None:
        """Bind without looking up this machine's name. `http.server` does so, and it can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, unless too many are open."""
        if not self._free.acquire(blocking=False):
            with suppress(OSError):  # the client has gone
                request.setblocking(False)
                request.send(TOO_MANY)
            return self.shutdown_request(request)
        try:
            return super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer the requests of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback for a client that has gone or was too slow."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def open_file(self, path: str) -> tuple[BinaryIO, int, str] | None:
        """Return the content at a path, its size and its version; None if there is no such content.

        Only listed files are served, so a path cannot lead to others. A link that leads out of a model's folder is no
        content, even if it was put there after the server began.
        """
        if path in self.texts:
            return BytesIO(self.texts[path]), len(self.texts[path]), f"{hash(self.texts[path]):x}"
        packed = path.endswith(PACKED)  # packed files are for the server alone
        path = path if path in self.files else path + PACKED
        if packed or path not in self.files:
            return None
        try:
            # Opened first: a file that is exchanged after the check is not the one that is read.
            stream = os.fdopen(os.open(self.files[path], os.O_RDONLY | os.O_NONBLOCK), "rb")
        except OSError:  # the file was removed after the server started
            return None
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode) or not self._inside(path, about):
            stream.close()
            return None
        version = f"{about.st_mtime_ns:x}-{about.st_size:x}"
        if path.endswith(PACKED):
            stream.close()
            content = _unpacked(self.files[path])
            return BytesIO(content), len(content), version
        return stream, about.st_size, version

    def _inside(self, path: str, about: os.stat_result) -> bool:
        """Return whether an open file is that at the path, and lies where the links of its model may lead."""
        if path not in self.folders:
            return True
        try:
            real = self.files[path].resolve(strict=True)
            return real.is_relative_to(links_stay_in(self.folders[path])) and os.path.samestat(real.stat(), about)
        except OSError:
            return False


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version = "potstill"
    sys_version = ""

    def setup(self) -> None:
        """Bound the time of the connection from its first byte on."""
        super().setup()
        self.bounded = BoundedConnection(self.connection, time.monotonic() + self.server.head_seconds)
        self.rfile, self.wfile = BufferedReader(self.bounded), self.bounded  # type: ignore[assignment]

    def handle_one_request(self) -> None:
        """Wait for a request, read its head and answer it."""
        self.bounded.deadline = time.monotonic() + self.server.head_seconds
        super().handle_one_request()

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        """Send a file's headers."""
        self._answer(with_content=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Print no requests on the terminal."""

    def _answer(self, with_content: bool) -> None:
        self.bounded.deadline = time.monotonic() + self.server.answer_seconds
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # nothing here takes a body, so it is not read
        # Another site can make its own host name point to this machine. Requests with that name are refused.
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in ("127.0.0.1", "localhost"):
            return self._refuse(HTTPStatus.FORBIDDEN, f"This server answers as 127.0.0.1 only, not as {host!r}.")
        path = unquote(self.path.partition("?")[0])
        found = self.server.open_file(path)
        if found is None:
            return self._refuse(HTTPStatus.NOT_FOUND, f"There is no {path} here.")
        stream, size, version = found
        with stream:
            tag = f'"{version}"'
            same = self.headers.get("If-None-Match") == tag
            self.send_response(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK)
            self.send_header("ETag", tag)
            if not same:
                self.send_header("Content-Type", TYPES[Path(path).suffix or ".html"])
                self.send_header("Content-Length", str(size))
            self.end_headers()
            if with_content and not same:
                self._send(stream, size)
        return None

    def _send(self, stream: BinaryIO, size: int) -> None:
        """Send as many bytes as the head of the answer said, or end the connection.

        A file that somebody writes meanwhile may be shorter or longer. The client would otherwise take the next answer
        for a part of it.
        """
        while size > 0 and (part := stream.read(min(size, 1 << 20))):
            self.wfile.write(part)
            size -= len(part)
        if size:
            self.close_connection = True

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        content = f"{why}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", TYPES[".txt"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Send the headers of every answer, and end them."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


def _unpacked(file: Path) -> bytes:
    with _UNPACKING:  # `cache` alone lets several requests unpack the same file at once
        return _unpack(file)


_UNPACKING = Lock()


@cache
def _unpack(file: Path) -> bytes:
    return lzma.decompress(file.read_bytes())
