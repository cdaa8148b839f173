"""Upload a student to the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probekd.errors import ModelError, first_line
from probekd.student.model import StudentInfo

# What a killed process may have left behind, and what other programs keep beside a model.
IGNORED = [".*", "**/.*", "*.tmp", "**/*.tmp"]


def push_student(directory: str | Path, repo_id: str, *, private: bool = False, api: Any | None = None) -> str:
    """Upload a student's directory, card and ONNX files included, as a model of the Hub.

    Args:
        directory: A student directory.
        repo_id: Name of the repository, ``owner/name``; it is made where there is none.
        private: Make it private; a public one that is there already is refused.
        api: What talks to the Hub; None = huggingface_hub's HfApi with the token of its login.

    Returns:
        Address of the upload.

    Raises:
        ModelError: not a student directory, a name that no repository can have, or a Hub that cannot be reached or
            does not let this user write.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    directory = Path(directory)
    info = StudentInfo.load(directory)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ModelError(f"{repo_id}: no name for a repository: {first_line(error)}; take owner/name") from None
    hub: Any = api or HfApi()
    with _explained(repo_id):
        hub.create_repo(repo_id, private=private, repo_type="model", exist_ok=True)
        if private and not hub.repo_info(repo_id, repo_type="model").private:
            raise ModelError(f"{repo_id}: is there already, and public; take another name, or leave --private out")
        done = hub.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            repo_type="model",
            ignore_patterns=IGNORED,
            commit_message=f"Student for {info.task}, trained by {info.method}",
        )
    return str(getattr(done, "commit_url", None) or done)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one sentence with a way out."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    # What its HTTP library raises when it gets no answer at all; which library that is has changed before.
    from huggingface_hub.errors import HTTPError as Unanswered  # type: ignore[attr-defined]

    try:
        yield
    except LocalTokenNotFoundError:
        raise ModelError(f"{repo_id}: nobody is logged in to the Hub here; run  hf auth login  first") from None
    except HfHubHTTPError as error:
        refused = getattr(error.response, "status_code", None) in (401, 403)
        remedy = "run  hf auth login  with a token that may write there" if refused else "try again later"
        raise ModelError(f"{repo_id}: the Hub refused ({first_line(error)}); {remedy}") from None
    except (OfflineModeIsEnabled, Unanswered, ConnectionError) as error:
        raise ModelError(
            f"{repo_id}: the Hub cannot be reached ({first_line(error)}); check the network and HF_HUB_OFFLINE"
        ) from None
