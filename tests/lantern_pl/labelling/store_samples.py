"""Rows for tests of the label store, and processes that use one."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from lantern_pl.labelling.store import Answered, Decision
from lantern_pl.teachers.chat import Attempt

ATTEMPT = Attempt(started=1700000000.5, seconds=0.25, outcome="ok")


def answered(number: int, state: str = "ok", **fields: Any) -> Answered:
    """The answer about pair `number`: of job `number` modulo 3 and a candidate of its own."""
    values: dict[str, Any] = {
        "key": f"key-{number}",
        "stage": "judge",
        "subject": f"pair-{number}",
        "job_id": f"job-{number % 3}",
        "candidate_id": f"candidate-{number}",
        "pair_id": f"pair-{number}",
        "sample": 0,
        "state": state,
        "reason": None if state == "ok" else "truncated",
        "raw": f"raw {number}",
        "parsed": {"level": "low", "number": number} if state == "ok" else None,
        "finish_reason": "stop",
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "cost": 0.5,
        "repairs": 0,
        "teacher": "teacher",
        "seconds": 0.25,
    }
    return Answered(**{**values, **fields})


def decision(number: int, **fields: Any) -> Decision:
    """An acceptance of pair `number`."""
    values: dict[str, Any] = {
        "pair_id": f"pair-{number}",
        "reviewer": "ada",
        "verdict": "accept",
        "level": None,
        "explanation": None,
        "note": None,
        "at": "2026-01-02T03:04:05Z",
        "rule": None,
    }
    return Decision(**{**values, **fields})


def fork(work: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Run `work` in a process of its own, which has all modules already."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def fork_and_hear(work: Callable[..., str], *arguments: Any) -> str:
    """What `work` returns in a process of its own."""
    mine, its = multiprocessing.get_context("fork").Pipe(duplex=False)

    def tell() -> None:
        its.send(work(*arguments))

    process = fork(tell)
    its.close()
    try:
        return str(mine.recv())
    finally:
        process.join()


def as_nobody() -> None:
    """Give up root's right to write everywhere."""
    if os.geteuid() == 0:
        os.setuid(65534)
