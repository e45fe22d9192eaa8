"""Runs `lantern predict` again and again, killing it at random moments until it's let finish. Run by test_predict.

Prints for each trial, as JSON, the finished shards' hashes and how many shards each kill had left.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

# All imports are made before a process is forked, and no thread is started: a trial is then a matter of a second.
import lantern_pl.lightning_cli  # noqa: F401
from lantern_pl.cli import main


def start(arguments: list[str]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = main(arguments)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def finish(arguments: list[str]) -> float:
    began = time.monotonic()
    _, status = os.waitpid(start(arguments), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.monotonic() - began


def trials() -> None:
    count, out, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    seconds = finish(arguments)
    draw = random.Random(0)
    for _ in range(count):
        shutil.rmtree(out)
        found = []
        for kill in range(3):
            child = start(arguments)
            if kill == 0:  # amid the shards, however fast the machine is just now
                latest = time.monotonic() + 60
                while not any(out.glob("part-*.parquet")) and time.monotonic() < latest:
                    time.sleep(0.001)
            else:  # the first third of a run reads models: kills come after that
                time.sleep(seconds * draw.uniform(0.3, 1.0))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            parts = sorted(out.glob("part-*.parquet")) if out.exists() else []
            for part in parts:
                pq.read_table(part)  # whole, or not there
            found.append(len(parts))
        finish(arguments)
        hashes = {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in sorted(out.glob("part-*.parquet"))}
        print(json.dumps({"parts": hashes, "found": found}), flush=True)


trials()
