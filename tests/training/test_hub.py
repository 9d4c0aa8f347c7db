"""`--push_to_hub`: the requests that reach the hub, and what happens when it refuses."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, set_client_factory
from huggingface_hub.utils import _http

from potstill.cli import main

http = _http.httpx2 if hasattr(_http, "httpx2") else _http.httpx
pytestmark = pytest.mark.usefixtures("signals_restored")


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


@pytest.fixture
def distil(corpus_folder: Path, teacher_folder: Path, tmp_path: Path) -> Callable[[], int]:
    def run() -> int:
        options = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--max_eval_samples", "2", "--use_cpu"]
        where = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), "--output_dir", str(tmp_path / "s")]
        push = ["--push_to_hub", "--hub_model_id", "me/student", "--hub_token", "hf_secret"]
        return main(["distill", *where, *options, *push])

    return run


def test_the_finished_folder_is_uploaded(hub: Hub, distil: Callable[[], int], tmp_path: Path) -> None:
    assert distil() == 0
    assert [(made["name"], made["organization"]) for made in hub.made] == [("student", "me")]
    written = {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir() if file.is_file()}
    assert {"config.json", "model.safetensors", "README.md", "recipe.yaml", "results.json"} <= hub.files.keys()
    assert hub.files == {name: content for name, content in written.items() if not name.startswith(".")}
    assert not any(b"hf_secret" in content for content in hub.files.values())


@pytest.mark.parametrize(
    ("refused", "message", "complete"),
    [
        ("/api/", "The hub did not make the repository me/student", False),
        ("/commit/", "but the hub did not take it as me/student", True),
    ],
)
def test_a_hub_that_refuses(
    hub: Hub,
    distil: Callable[[], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: str,
    message: str,
    complete: bool,
) -> None:
    hub.refuses = (refused,)
    assert distil() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert "hf auth login" in error or "hf upload me/student" in error
    assert (tmp_path / "s" / "model.safetensors").is_file() == complete


def test_only_a_finished_model_is_uploaded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ["--teacher", "t", "--corpus", "c", "--output_dir", str(tmp_path)]
    assert main(["distill", *where, "--hub_strategy", "every_save"]) == 1
    assert "--hub_strategy is 'every_save': it would upload models that are not finished" in capsys.readouterr().err
