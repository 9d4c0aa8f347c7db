"""Clients that are slow, many, or gone: none of them holds the server, and it says nothing about them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from serve_samples import write_export

from potstill.serve.models import ServedModel
from potstill.serve.server import PageServer

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_export(tmp_path / "student")


@pytest.fixture
def start(folder: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., PageServer]]:
    """Start servers with limits; what they print fails the test."""
    servers = []

    def start(**limits: float) -> PageServer:
        server = PageServer([ServedModel.open(str(folder), "--model")], **limits)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    assert capfd.readouterr() == ("", "")


def connect(server: PageServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=60)


def status(server: PageServer, connection: socket.socket | None = None, rest: bytes = REQUEST) -> bytes:
    """Send a request, or the rest of it, and return the number at the beginning of the answer."""
    with connection or connect(server) as asking:
        asking.sendall(rest)
        return asking.recv(100)[9:12]


def ended(connection: socket.socket) -> bool:
    """Return whether the server has ended a connection, without waiting for it."""
    connection.setblocking(False)
    try:
        return connection.recv(1000) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def wait_until(done: Callable[[], bool]) -> None:
    """Wait for what the limit that a test sets brings about in some seconds; the usual one of 30 would be too late."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < 20
        time.sleep(0.01)


def answering() -> int:
    """Number of threads that answer a connection."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize(
    "drops",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000, REQUEST[:3] + b"T" * 10_000],
    ids=["of a header", "of the first line"],
)
def test_a_head_byte_by_byte_is_given_up(start: Callable[..., PageServer], drops: bytes) -> None:
    server = start(head_seconds=0.5)
    sent = iter(drops)
    began = time.monotonic()
    with connect(server) as client:

        def drip() -> bool:
            try:
                client.send(bytes([next(sent)]))
            except BlockingIOError:
                pass
            except ConnectionError:
                return True
            return ended(client)

        # Each byte comes well within the limit. Only all of them together exceed it.
        wait_until(drip)
    assert time.monotonic() - began >= 0.5
    assert next(sent, None) is not None
    wait_until(lambda: answering() == 0)
    server.head_seconds = 30  # a busy machine may take its time for what is not slow on purpose
    assert status(server) == b"200"


def test_a_connection_that_asks_nothing_more_is_ended(start: Callable[..., PageServer]) -> None:
    server = start(head_seconds=2)  # long enough for a request on a busy machine
    with connect(server) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(10_000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: ended(client))
    wait_until(lambda: answering() == 0)


def test_an_answer_that_is_not_read_is_given_up(start: Callable[..., PageServer], folder: Path) -> None:
    server = start(answer_seconds=2)
    (folder / "onnx" / "model.onnx").write_bytes(bytes(50_000_000))
    with connect(server) as client:
        client.sendall(b"GET /models/0/onnx/model.onnx HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: answering() == 0)
        received = 0
        with suppress(ConnectionError):
            while more := client.recv(1_000_000):
                received += len(more)
        assert received < 50_000_000
    server.answer_seconds = 600  # a busy machine may take its time for what is not slow on purpose
    assert status(server) == b"200"


def test_a_body_is_not_read_as_the_next_request(start: Callable[..., PageServer]) -> None:
    with connect(start()) as client:
        client.sendall(REQUEST[:-2] + b"Content-Length: %d\r\n\r\n" % len(REQUEST) + REQUEST)
        answers = bytearray()
        with suppress(ConnectionError):  # the rest was not read
            while more := client.recv(100_000):
                answers += more
    assert answers.count(b"HTTP/1.1 ") == 1


def test_two_hundred_at_once_are_all_answered(start: Callable[..., PageServer]) -> None:
    server = start()
    clients = [connect(server) for _ in range(200)]
    for client in clients:
        client.sendall(REQUEST[:20])
    wait_until(lambda: answering() == 200)
    assert status(server) == b"200"  # one that is complete does not wait for the others
    assert [status(server, client, REQUEST[20:]) for client in clients] == [b"200"] * 200
    wait_until(lambda: answering() == 0)


def test_too_many_at_once_are_refused_until_one_ends(start: Callable[..., PageServer]) -> None:
    server = start(connections=3)
    clients = [connect(server) for _ in range(3)]
    wait_until(lambda: answering() == 3)
    assert [status(server, rest=b"") for _ in range(4)] == [b"503"] * 4
    for client in clients:
        client.close()
    wait_until(lambda: answering() == 0)
    assert status(server) == b"200"


@pytest.mark.parametrize("target", ["http://[/", "//[", "*", "%ff%fe", "/?" + "&" * 60_000, "\x7f"])
def test_a_strange_address_is_no_page(start: Callable[..., PageServer], target: str) -> None:
    expected = b"200" if target.startswith("/?") else b"404"
    assert status(start(), rest=f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) == expected


def test_a_client_that_is_gone_before_the_answer(start: Callable[..., PageServer]) -> None:
    server = start()
    for _ in range(20):
        with connect(server) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed by a reset
            client.sendall(REQUEST * 3)
    wait_until(lambda: answering() == 0)
    assert status(server) == b"200"
