"""Saves checkpoints in a process that is killed at random moments, again and again; prints what could be read after each."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lantern_pl.checkpoints import DurableCheckpoints, newest_good, read_checkpoint

KEPT = 2


def save_until_killed(folder: Path, step: int, said: int) -> None:
    keeper = DurableCheckpoints()
    while True:
        step += 1
        # Every other checkpoint replaces one of the same name; of the others, the newest few stay.
        path = folder / ("again.ckpt" if step % 2 else f"step={step}.ckpt")
        keeper.save_checkpoint({"global_step": step, "weights": torch.full((250_000,), float(step))}, path)
        os.write(said, f"{step}\n".encode())
        keeper.remove_checkpoint(folder / f"step={step - 2 * KEPT}.ckpt")


def main(folder: Path, kills: int) -> None:
    # A process that has used OpenMP's threads can't be forked: the child would wait for threads that it doesn't have.
    torch.set_num_threads(1)
    draw = random.Random(0)
    step = 0
    for _ in range(kills):
        hears, says = os.pipe()
        saver = os.fork()
        if saver == 0:
            save_until_killed(folder, step, says)
        os.close(says)
        # One checkpoint at least, so that there's progress; then any moment.
        first = os.read(hears, 1 << 20)
        time.sleep(draw.random() * 0.05)
        os.kill(saver, signal.SIGKILL)
        os.waitpid(saver, 0)
        with os.fdopen(hears, "rb") as rest:
            saved = int((first + rest.read()).split()[-1])
        path, skipped = newest_good(folder)
        found = read_checkpoint(path)
        whole = bool((found["weights"] == found["global_step"]).all())
        step = found["global_step"]
        unfinished = len(list(folder.glob(".*")))
        print(json.dumps({"saved": saved, "found": step, "whole": whole, "skipped": skipped, "unfinished": unfinished}))


main(Path(sys.argv[1]), int(sys.argv[2]))
