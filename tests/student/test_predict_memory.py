"""A file of any length is predicted in the memory of a chunk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probekd.student import Student

FEW, MANY = 20_000, 120_000
TEXT = "the big red dog was seen here, {} times, and then it was gone again for the rest of the year"
# Answers cost nothing, so that the reading and writing of rows is what is measured. The peak that the system remembers is
# that of importing torch, so the memory in use is looked at again and again.
SCRIPT = """
import json, sys, threading
import numpy as np
import psutil
from pathlib import Path
from probekd.student import predict

class Even:
    def predict_proba(self, examples):
        return [np.full(len(e.options), 1 / len(e.options)) for e in examples]

predict.open_student = lambda *_, **__: Even()
student, few, many, target = map(Path, sys.argv[1:])
process, peak, found = psutil.Process(), 0, []

def watch():
    global peak
    while not over.wait(0.005):
        peak = max(peak, process.memory_info().rss)

for source in (few, few, many):
    peak, over = 0, threading.Event()
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    rows = predict.predict_file(student, source, target.with_name(source.stem + target.name), overwrite=True)
    over.set()
    watching.join()
    found.append((rows, peak / 2**20))
print(json.dumps(found[1:]))
"""


def write(path: Path, number: int) -> Path:
    texts = [TEXT.format(i) for i in range(number)]
    if path.suffix == ".parquet":
        # One row group, as some writers leave it.
        pq.write_table(pa.table({"text": texts, "number": range(number)}), path, row_group_size=number)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "number": i}) + "\n" for i, t in enumerate(texts)))
    else:
        path.write_text("text,number\n" + "".join(f'"{t}",{i}\n' for i, t in enumerate(texts)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("csv", "parquet"), ("parquet", "jsonl")])
def test_six_times_the_rows_take_no_more_memory(
    kinds_student: Student, tmp_path: Path, source: str, target: str
) -> None:
    few, many = (write(tmp_path / f"{name}.{source}", n) for name, n in (("few", FEW), ("many", MANY)))
    command = [sys.executable, "-c", SCRIPT, kinds_student.directory, few, many, tmp_path / f"out.{target}"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    (rows_few, small), (rows_many, large) = json.loads(done.stdout)
    assert (rows_few, rows_many) == (FEW, MANY)
    # As Python objects the many rows take more than 50 MiB.
    assert large - small < 35, f"{small:.0f} MiB for {FEW} rows, {large:.0f} MiB for {MANY}"
