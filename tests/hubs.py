"""A hub in this process, for tests of what is uploaded."""

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
