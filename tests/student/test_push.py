"""Uploading, with a stand-in for the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from probekd.errors import ModelError
from probekd.student import Student
from probekd.student.push import push_student


@dataclass
class Hub:
    """Does what it is told to, and remembers it."""

    error: Exception | None = None
    public: bool = False
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.error:
            raise self.error

    def repo_info(self, repo_id: str, *, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("upload_folder", options))
        return SimpleNamespace(commit_url="the commit")


def test_the_directory_is_uploaded_without_what_lies_beside_it(kinds_student: Student) -> None:
    hub = Hub()
    assert push_student(kinds_student.directory, "me/kinds", private=True, api=hub) == "the commit"
    (_, made), (_, sent) = hub.calls
    assert made == {"repo_id": "me/kinds", "private": True, "repo_type": "model", "exist_ok": True}
    assert (sent["repo_id"], sent["folder_path"]) == ("me/kinds", kinds_student.directory)
    assert sent["commit_message"] == "Student for kinds, trained by labels"
    files = [
        "README.md",
        "model.safetensors",
        "onnx/model.onnx",
        ".lock",
        "onnx/.x.tmp",
        "a.tmp",
        ".cache/huggingface/x",
    ]
    kept = list(filter_repo_objects(files, ignore_patterns=sent["ignore_patterns"]))
    assert kept == files[:3]


def test_a_public_repository_is_not_taken_for_a_private_one(kinds_student: Student) -> None:
    hub = Hub(public=True)
    with pytest.raises(ModelError, match="is there already, and public"):
        push_student(kinds_student.directory, "me/kinds", private=True, api=hub)
    assert [name for name, _ in hub.calls] == ["create_repo"]
    assert push_student(kinds_student.directory, "me/kinds", api=hub) == "the commit"


def http_error(status: int) -> errors.HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return errors.HfHubHTTPError(f"{status} somehow\nmore", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.OfflineModeIsEnabled("offline mode is enabled"),
            "the Hub cannot be reached .offline mode is enabled.; check",
        ),
        (errors.HTTPError("connection refused"), "the Hub cannot be reached .connection refused.; check the network"),
        (errors.LocalTokenNotFoundError(), "nobody is logged in to the Hub here; run  hf auth login  first"),
        (http_error(403), "the Hub refused .403 somehow.; run  hf auth login  with a token that may write there"),
        (http_error(500), "the Hub refused .500 somehow.; try again later"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_sentence(kinds_student: Student, error: Exception, message: str) -> None:
    with pytest.raises(ModelError, match=f"^me/kinds: {message}"):
        push_student(kinds_student.directory, "me/kinds", api=Hub(error=error))


def test_what_cannot_be_pushed_is_refused_before_anything_is_asked(kinds_student: Student, tmp_path: Path) -> None:
    hub = Hub()
    with pytest.raises(ModelError, match="not a student"):
        push_student(tmp_path, "me/kinds", api=hub)
    with pytest.raises(ModelError, match=r"me/the kinds: no name for a repository.*take owner/name"):
        push_student(kinds_student.directory, "me/the kinds", api=hub)
    assert hub.calls == []
