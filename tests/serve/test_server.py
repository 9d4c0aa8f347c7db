"""The server hands out the page and the models on its list, with the headers a browser needs, and nothing else."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_samples import SMALLEST_ONNX, cached, write_export

from potstill.errors import PotstillError
from potstill.serve import server as server_module
from potstill.serve.models import ServedModel
from potstill.serve.serve import serve
from potstill.serve.server import PageServer
from web import pack


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_export(tmp_path / "out" / "student")


@pytest.fixture
def server(model: Path) -> Iterator[PageServer]:
    other = write_export(model.parent / "teacher")
    with PageServer([ServedModel.open(str(folder), "--model") for folder in (model, other)]) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def ask(
    server: PageServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_every_file_of_the_page_has_its_type_and_headers(server: PageServer) -> None:
    for path, kind in {
        "/": "text/html; charset=utf-8",
        "/style.css": "text/css; charset=utf-8",
        "/page.js": "text/javascript; charset=utf-8",
        "/ort/ort-wasm-simd-threaded.mjs": "text/javascript; charset=utf-8",
        "/ort/ort-wasm-simd-threaded.wasm": "application/wasm",
        "/ort/ort-wasm-simd-threaded.asyncify.wasm": "application/wasm",
        "/models.json": "application/json",
        "/models/0/config.json": "application/json",
        "/models/1/onnx/model.onnx": "application/octet-stream",
    }.items():
        status, headers, content = ask(server, path)
        assert (status, headers["Content-Type"]) == (200, kind), path
        assert headers["Content-Length"] == str(len(content))
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert "connect-src 'self'" in headers["Content-Security-Policy"]
        assert content.startswith(b"\0asm") == (kind == "application/wasm")

        tag = headers["ETag"]
        status, headers, content = ask(server, path, "HEAD")
        assert (status, content, headers["ETag"]) == (200, b"", tag)
        assert ask(server, path, If_None_Match=tag)[::2] == (304, b"")


def test_the_models_are_described_and_served(server: PageServer) -> None:
    models = json.loads(ask(server, "/models.json")[2])["models"]
    assert [one["name"] for one in models] == ["student", "teacher"]
    for one in models:
        assert ask(server, f"/{one['path']}{one['file']}")[2] == SMALLEST_ONNX


@pytest.mark.parametrize(
    "path",
    [
        "/models/0/private.txt",
        "/models/0/onnx",
        "/models/0/",
        "/models/2/config.json",
        "/models/0/../1/config.json",
        "/../../../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/..%2fserver.py",
        "/../server.py",
        "\\..\\server.py",
        "/ort/ort-wasm-simd-threaded.wasm/..",
        "/%00",
        "",
    ],
)
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    status, _, content = ask(server, path or "?")
    assert status == 404
    assert content.startswith(b"There is no ")
    assert ask(server, path or "?", "HEAD")[::2] == (404, b"")


def test_other_methods_and_names_are_refused(server: PageServer) -> None:
    assert ask(server, "/", "POST")[0] == 501
    assert ask(server, "/", Host="elsewhere.example:80")[0] == 403
    assert ask(server, "/", Host="localhost:1")[0] == 200
    assert ask(server, "/", Host="127.0.0.1")[0] == 200


def test_it_listens_to_this_machine_alone(server: PageServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


def test_a_file_that_has_gone_is_missing(server: PageServer, model: Path) -> None:
    (model / "onnx" / "model.onnx").unlink()
    assert ask(server, "/models/0/onnx/model.onnx")[0] == 404


@pytest.mark.parametrize("file", ["config.json", "onnx/model.onnx"])
def test_a_link_out_of_the_folder_is_not_followed(server: PageServer, model: Path, file: str) -> None:
    content = (model / file).read_bytes()
    assert ask(server, f"/models/0/{file}")[2] == content
    outside, part = model.parent / "outside", Path(file).parts[0]
    (model / part).rename(outside)
    (model / part).symlink_to(outside)
    assert (model / file).read_bytes() == content
    assert ask(server, f"/models/0/{file}")[0] == 404
    (model / part).unlink()
    outside.rename(model / "moved")
    (model / part).symlink_to("moved")  # within the folder
    assert ask(server, f"/models/0/{file}")[2] == content


def test_a_folder_that_is_itself_a_link_is_served(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    with PageServer([ServedModel.open(str(tmp_path / "link"), "--model")]) as server:
        content, size, _ = server.open_file("/models/0/config.json")
        with content:
            assert len(content.read()) == size > 0


def test_a_model_of_the_cache_is_served_without_links_that_leave_it(model: Path, tmp_path: Path) -> None:
    folder = cached(model, tmp_path / "hub" / "models--somebody--student")
    with PageServer([ServedModel.open(str(folder), "--model")]) as server:
        for name in ("config.json", "onnx/model.onnx"):
            content, size, _ = server.open_file(f"/models/0/{name}")
            with content:
                assert content.read() == (folder / name).read_bytes()
            assert size > 0
        (folder / "config.json").unlink()
        (tmp_path / "elsewhere").write_text("{}")
        (folder / "config.json").symlink_to(tmp_path / "elsewhere")
        assert server.open_file("/models/0/config.json") is None


def test_packed_files_are_not_served_as_they_are(server: PageServer) -> None:
    packed = [path for path in server.files if path.endswith(".xz")]
    assert packed
    for path in (*packed, "/.xz", "/index.html.xz"):
        assert ask(server, path)[0] == 404


def test_a_link_that_is_turned_to_another_folder_is_not_followed(model: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "current", write_export(tmp_path / "other", num_hidden_layers=9)
    link.symlink_to(model)
    with PageServer([ServedModel.open(str(link), "--model")]) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        link.unlink()
        link.symlink_to(other)
        assert json.loads(ask(running, "/models/0/config.json")[2])["num_hidden_layers"] == 3
        running.shutdown()


@pytest.mark.parametrize("size", [5_000_000, 100])
def test_a_file_that_changes_its_length_while_it_is_sent(
    server: PageServer, model: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """No byte of the next answer counts as a part of the file, and none of the file as the next answer."""
    file = model / "onnx" / "model.onnx"
    file.write_bytes(b"x" * 3_000_000)
    opened = PageServer.open_file

    def written_meanwhile(self: PageServer, path: str) -> Any:
        found = opened(self, path)
        if path.endswith(".onnx"):
            os.truncate(file, size)
        return found

    monkeypatch.setattr(PageServer, "open_file", written_meanwhile)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", "/models/0/onnx/model.onnx")
    answer = connection.getresponse()
    if size < 3_000_000:
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
    else:
        assert len(answer.read()) == 3_000_000
        connection.request("GET", "/models/0/config.json")
        assert connection.getresponse().status == 200
    connection.close()


def test_a_pipe_in_place_of_a_file_is_not_waited_for(server: PageServer, model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    assert ask(server, "/models/0/config.json")[0] == 404


def test_a_page_closed_while_loading_is_no_error(
    server: PageServer, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (model / "onnx" / "model.onnx").write_bytes(bytes(50_000_000))
    with socket.create_connection(("127.0.0.1", server.server_port)) as browser:
        browser.sendall(b"GET /models/0/onnx/model.onnx HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert browser.recv(100).startswith(b"HTTP/1.1 200")
    time.sleep(0.2)
    assert ask(server, "/")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_an_installation_without_the_page(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STATIC", tmp_path)
    with pytest.raises(PotstillError, match="make web"):
        PageServer([])


def test_it_opens_a_browser_and_ends_by_ctrl_c(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = threading.Event()

    def until_opened(self: PageServer) -> None:
        opened.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", lambda url: opened.set())
    monkeypatch.setattr(PageServer, "serve_forever", until_opened)
    # Two folders of one name are told apart by their paths.
    other = write_export(model.parent / "other" / "student")
    assert serve(str(model), str(other), port=0, open=True) == "stopped"
    assert opened.is_set()
    assert f"{model} beside {other} on http://127.0.0.1:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "status", "closing"),
    [
        # The long suite: each needs a process, and Ctrl-C is tested in this one above.
        pytest.param(signal.SIGINT, 0, "stopped", marks=pytest.mark.slow),
        (signal.SIGTERM, 128 + signal.SIGTERM, ""),
    ],
)
def test_signals_end_it_without_a_traceback(model: Path, number: int, status: int, closing: str) -> None:
    command = [sys.executable, "-m", "potstill", "serve", "--port", "0", "--model", str(model)]
    # Of a suite started in the background children inherit an ignored SIGINT.
    start = [sys.executable, "-c", "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "]
    start[-1] += "os.execv(sys.argv[1], sys.argv[1:])"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*start, *command], env=environment, **pipes)
    try:
        assert "student on http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, err
        assert "Traceback" not in err
        assert out.strip() == closing
    finally:
        process.kill()


def test_the_page_was_built_from_these_sources() -> None:
    record = json.loads((pack.STATIC / pack.RECORD).read_text(encoding="utf-8"))
    assert record["sources"] == pack.checksum(pack.sources(), pack.WEB), "web/ has changed since: run `make web`"
    assert record["built"] == pack.checksum(pack.built(), pack.STATIC), "a built file has changed: run `make web`"


def test_what_the_page_is_built_with_is_pinned() -> None:
    packages = json.loads((pack.WEB / "package.json").read_text(encoding="utf-8"))
    locked = json.loads((pack.WEB / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    for name, version in (packages["dependencies"] | packages["devDependencies"]).items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert all("integrity" in entry for name, entry in locked.items() if name)
