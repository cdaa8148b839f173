"""The run directory: who may write it, what is done in it, and whether that is still what the config asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from probekd.config import RunConfig, config_differences, dump_config, read_yaml
from probekd.errors import ConfigError, StoreError
from probekd.files import file_digest, read_json, remove_leftovers, write_json, write_text
from probekd.tasks.base import content_hash

FORMAT = 1
_NOT_COMPARED = ("name", "runs_dir")  # where a run lies changes nothing in it


@dataclass(frozen=True)
class RunDirectory:
    """A directory with config.yaml and run.json; see the contract in the README.

    A stage is done when run.json says so under the same key (a hash of everything the stage depends on) and its files
    still have the checksums noted then.
    """

    path: Path

    @classmethod
    def prepare(cls, config: RunConfig, *, resume: bool = False) -> RunDirectory:
        """Create the directory of a config, or take it up again.

        Raises:
            ConfigError: it was made with another config and ``resume`` is off.
            StoreError: it is not a run directory, or of another version.
        """
        path = config.runs_dir / (config.name or "run")
        run = cls(path)
        stored = path / "config.yaml"
        if path.is_dir() and any(f.name != ".lock" for f in path.iterdir()) and not stored.is_file():
            raise StoreError(f"{path} exists and is not a run directory; choose another name with --set name=...")
        # Of a run that was killed between the two files nothing is done yet.
        if stored.is_file() and (path / "run.json").is_file():
            before, now = (
                {k: v for k, v in d.items() if k not in _NOT_COMPARED}
                for d in (read_yaml(stored), config.model_dump(mode="json"))
            )
            changes = config_differences(before, now)
            started = any(entry["status"] == "done" for entry in run.record["stages"].values())
            if changes and started and not resume:
                listing = "\n".join(f"  {line}" for line in changes)
                raise ConfigError(
                    f"{path} was made with another config:\n{listing}\n"
                    "pass --resume to go on in it (only what depends on the changes is done again), or --set name=... for a new run"
                )
        write_text(stored, dump_config(config))
        if not (path / "run.json").is_file():
            write_json(path / "run.json", {"format": FORMAT, **_provenance(config), "notes": [], "stages": {}})
        elif run.record.get("format") != FORMAT:
            raise StoreError(
                f"{path}/run.json was written by another version (format {run.record.get('format')!r}, this is {FORMAT}); use a new name"
            )
        return run

    @property
    def record(self) -> dict[str, Any]:
        """run.json."""
        return read_json(self.path / "run.json")  # type: ignore[no-any-return]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process; the system lets go of it when the process ends, however it ends.

        Raises:
            StoreError: another process holds it.
        """
        from filelock import FileLock, Timeout

        created = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(
                f"another process is working in {self.path}; wait for it, or choose another name"
            ) from None
        try:
            remove_leftovers(self.path)
            yield
        finally:
            lock.release()
            if created and not (self.path / "config.yaml").is_file():
                (self.path / ".lock").unlink(missing_ok=True)
                self.path.rmdir()

    def note(self, notes: tuple[str, ...]) -> None:
        """Replace what was noted while reading the data."""
        write_json(self.path / "run.json", {**self.record, "notes": list(notes)})

    def is_done(self, stage: str, key: str) -> bool:
        """Whether a stage is finished for this key and its files are whole."""
        entry = self.record["stages"].get(stage, {})
        if entry.get("status") != "done" or entry.get("key") != key:
            return False
        return all(
            (self.path / name).is_file() and file_digest(self.path / name) == digest
            for name, digest in entry["files"].items()
        )

    def key_of(self, stage: str) -> str | None:
        """Key under which a stage was finished; None when it is not done."""
        entry = self.record["stages"].get(stage, {})
        return entry.get("key") if entry.get("status") == "done" else None

    def do(self, stage: str, key: str, work: Callable[[], Mapping[str, Any]]) -> None:
        """Do a stage and record it; ``work`` returns ``files`` (names in the directory) and figures such as ``tokens``."""
        began = time.monotonic()
        self._record(stage, {"status": "running", "key": key})
        found = dict(work())
        files = {name: file_digest(self.path / name) for name in sorted(found.pop("files"))}
        figures = {"tokens": 0, "bytes": sum((self.path / name).stat().st_size for name in files), **found}
        self._record(
            stage,
            {"status": "done", "key": key, "seconds": round(time.monotonic() - began, 2), **figures, "files": files},
        )

    def forget_others(self, keys: Mapping[str, str]) -> None:
        """Forget stages that were finished for other keys: what they left does not go with what is made from now on."""
        record = self.record
        kept = {stage: entry for stage, entry in record["stages"].items() if entry.get("key") == keys.get(stage)}
        if len(kept) < len(record["stages"]):
            write_json(self.path / "run.json", {**record, "stages": kept})

    def _record(self, stage: str, entry: Mapping[str, Any]) -> None:
        record = self.record
        write_json(self.path / "run.json", {**record, "stages": {**record["stages"], stage: dict(entry)}})


def _provenance(config: RunConfig) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "pyarrow")
    return {
        "probekd": _version("probekd"),
        "versions": {name: _version(name) for name in packages},
        "seed": config.seed,
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree"


def _git_commit() -> str:
    """Commit of the working directory, "" outside a checkout."""
    import subprocess

    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def stage_key(*parts: object) -> str:
    """Key of a stage from everything it depends on."""
    return content_hash(FORMAT, *parts)[:24]
