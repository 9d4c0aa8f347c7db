"""A hub in this process, for tests of what is uploaded and of what is loaded from it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, set_client_factory
from huggingface_hub.utils import _http

http = _http.httpx2 if hasattr(_http, "httpx2") else _http.httpx
PUSH = ["--push_to_hub", "--hub_model_id", "me/student", "--hub_token", "hf_secret"]


class Hub:
    """A hub that answers requests in this process; it keeps the files of its only repository."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.refuses: tuple[str, ...] = ()

    def answer(self, request: Any) -> Any:
        path = request.url.path
        if any(part in path for part in self.refuses):
            return http.Response(403, json={"error": "Forbidden"}, request=request)
        if path == "/api/repos/create":
            self.made.append(json.loads(request.content))
            return http.Response(200, json={"url": "https://huggingface.co/me/student"}, request=request)
        if path == "/api/validate-yaml":
            return http.Response(200, json={"errors": [], "warnings": []}, request=request)
        if path.startswith("/api/models/me/student/preupload/"):
            names = [file["path"] for file in json.loads(request.content)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return http.Response(200, json={"files": modes}, request=request)
        if path.startswith("/api/models/me/student/commit/"):
            for line in request.read().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = "https://huggingface.co/me/student/commit/abc"
            answer = {"commitUrl": commit, "commitOid": "abc", "success": True}
            return http.Response(200, json=answer, request=request)
        if path == "/api/models/me/student":
            return http.Response(200, json={"id": "me/student", "sha": "abc", "siblings": []}, request=request)
        return http.Response(404, json={"error": f"no {path}"}, request=request)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    set_client_factory(lambda: http.Client(transport=http.MockTransport(hub.answer)))
    yield hub
    set_client_factory(_http.default_client_factory)
    close_session()


def check_uploaded(hub: Hub, folder: Path, *apart: str) -> None:
    """Check that the files of a finished folder reached the repository: not its folders, hidden files and others."""
    assert {(made["name"], made["organization"]) for made in hub.made} == {("student", "me")}
    written = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert {"config.json", "model.safetensors", "README.md", "recipe.yaml", "results.json"} <= hub.files.keys()
    assert hub.files == {
        name: content for name, content in written.items() if not name.startswith(".") and name not in apart
    }
    assert not any(b"hf_secret" in content for content in hub.files.values())


class Network:
    """A network between this process and a hub, with the models of folders; it can be cut off, or lose requests.

    Attributes:
        models: hub name → folder.
        cut: whether no connection can be made.
        lost: how many of the next requests get no answer in time.
        failed: how many of the next attempts to connect fail.
        requests: method and path of all requests, in order.
        waits: the seconds that were waited between them, which take no time.
    """

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self) -> None:
        self.models: dict[str, Path] = {}
        self.cut = False
        self.lost = self.failed = 0
        self.requests: list[str] = []
        self.waits: list[float] = []

    def answer(self, request: Any) -> Any:
        path = request.url.path
        self.requests.append(f"{request.method} {path}")
        if self.cut or self.failed:
            self.failed -= not self.cut
            raise http.ConnectError("[Errno -2] Name or service not known", request=request)
        if self.lost:
            self.lost -= 1
            raise http.ConnectTimeout("timed out", request=request)
        for name, folder in self.models.items():
            files = {file.name: file for file in folder.iterdir() if file.is_file()}
            if path.startswith(f"/api/models/{name}/tree/"):
                sizes = [(file, path.stat().st_size) for file, path in files.items()]
                tree = [{"type": "file", "path": file, "size": size, "oid": file} for file, size in sizes]
                return http.Response(200, json=tree, request=request)
            if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                found = {"id": name, "sha": self.commit, "siblings": siblings}
                return http.Response(200, json=found, request=request)
            if path.startswith(f"/{name}/resolve/"):
                file = path.rsplit("/", 1)[1]
                headers = {"X-Repo-Commit": self.commit, "ETag": f'"{file}"'}
                if file not in files:
                    headers["X-Error-Code"] = "EntryNotFound"
                    return http.Response(404, headers=headers, request=request)
                content = files[file].read_bytes()
                headers["Content-Length"] = str(len(content))
                content = b"" if request.method == "HEAD" else content
                return http.Response(200, headers=headers, content=content, request=request)
        if path == "/":
            return http.Response(200, request=request)
        return http.Response(401, headers={"X-Error-Code": "RepoNotFound"}, json={}, request=request)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Network]:
    """A network in this process, with an empty cache of the hub."""
    network = Network()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("potstill.hub_access._reached", {})
    monkeypatch.setattr("time.sleep", network.waits.append)
    options = {"event_hooks": {"request": [_http.hf_request_event_hook]}, "follow_redirects": True}
    set_client_factory(lambda: http.Client(transport=http.MockTransport(network.answer), **options))
    yield network
    set_client_factory(_http.default_client_factory)
    close_session()
