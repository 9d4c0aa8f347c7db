"""A web server for one page. It serves a fixed list of files to this machine only."""

from __future__ import annotations

import errno
import json
import lzma
import shutil
from collections.abc import Sequence
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from socketserver import TCPServer
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from potstill.errors import PotstillError, first_line
from potstill.serve.models import ServedModel

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


class PageServer(ThreadingHTTPServer):
    """Serves the page with its models on 127.0.0.1, to this machine alone.

    Args:
        models: the models that the page runs, at most two, for the same task.
        port: 0 for any free one.

    Raises:
        PotstillError: the port is taken or not allowed, or this installation has no page.
    """

    daemon_threads = True  # the server ends even during a download

    def __init__(self, models: Sequence[ServedModel], port: int = 0) -> None:
        if not 0 <= port <= 65535:
            raise PotstillError(f"--port is {port}: it must be between 0 and 65535.")
        self.files = {f"/{path.relative_to(STATIC).as_posix()}": path for path in STATIC.rglob("*") if path.is_file()}
        if "/index.html" not in self.files:
            raise PotstillError("This installation of potstill lacks the page: build it with `make web`.")
        self.files["/"] = self.files.pop("/index.html")
        described = []
        for number, model in enumerate(models):
            path = f"models/{number}/"
            self.files |= {f"/{path}{name}": model.folder / name for name in model.files}
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

    def open_file(self, path: str) -> tuple[BinaryIO, int, str] | None:
        """Return the content at a path, its size and its version; None if there is no such content.

        Only listed files are served, so a path cannot lead to others.
        """
        if path in self.texts:
            return BytesIO(self.texts[path]), len(self.texts[path]), f"{hash(self.texts[path]):x}"
        path = path if path in self.files else path + PACKED
        if path not in self.files:
            return None
        try:
            stat = self.files[path].stat()
            version = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
            if path.endswith(PACKED):
                content = _unpacked(self.files[path])
                return BytesIO(content), len(content), version
            return self.files[path].open("rb"), stat.st_size, version
        except OSError:  # the file was removed after the server started
            return None


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may wait for its next request
    server_version = "potstill"
    sys_version = ""

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        """Send a file's headers."""
        self._answer(with_content=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Print no requests on the terminal."""

    def _answer(self, with_content: bool) -> None:
        # Another site can make its own host name point to this machine. Requests with that name are refused.
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in ("127.0.0.1", "localhost"):
            return self._refuse(HTTPStatus.FORBIDDEN, f"This server answers as 127.0.0.1 only, not as {host!r}.")
        path = unquote(urlsplit(self.path).path)
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
                try:
                    shutil.copyfileobj(stream, self.wfile, 1 << 20)
                except ConnectionError:  # the user has closed the page
                    self.close_connection = True
        return None

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


@cache
def _unpacked(file: Path) -> bytes:
    return lzma.decompress(file.read_bytes())
