"""The way between the workers and the process that answers."""

import asyncio
from multiprocessing import Manager
from pathlib import Path
from typing import Any

import pytest
from litserve import LitAPI
from litserve.transport.process_transport import MPQueueTransport
from litserve.utils import LitAPIStatus, LoopResponseType
from serving_support import PAIR, running

from lantern_pl.serving.workers import BatchLoop, Unpacked


class Api(LitAPI):
    """Of which the loop looks at the settings alone."""

    def setup(self, device: str) -> None: ...

    def predict(self, x: Any) -> Any: ...


def test_answers_of_a_batch_go_back_in_one_message() -> None:
    """And come out one by one, each of which is LitServe's; who has waited too long has an answer of its own."""
    loop = BatchLoop()
    with Manager() as manager:
        queue = manager.Queue()
        transport = MPQueueTransport(manager, [queue])
        questions = manager.Queue()
        api = Api(max_batch_size=4, batch_timeout=0.01)
        api.request_timeout = 5.0
        asked = [(0, uid, at, f"question {uid}") for uid, at in (("a", 1e12), ("old", 0.0), ("b", 1e12), ("c", 1e12))]
        questions.put(asked[0])
        questions.put(asked[1:])
        batch, late = loop.get_batch_requests(api, questions, transport)
        assert ([uid for _, uid, _ in batch], late) == (["a", "b", "c"], [(0, "old")])
        regular = LoopResponseType.REGULAR
        loop.put_response(transport, 0, "old", None, LitAPIStatus.ERROR, regular)
        for uid, status in (("a", LitAPIStatus.OK), ("b", LitAPIStatus.ERROR), ("c", LitAPIStatus.OK)):
            loop.put_response(transport, 0, uid, f"answer {uid}", status, regular)
        assert queue.qsize() == 1 + 1  # the late one's, and the batch's

        async def received() -> list[tuple[str, Any, LitAPIStatus]]:
            reader = Unpacked(transport)
            messages = [await reader.areceive(0) for _ in range(4)]
            return [(uid, content, status) for uid, (content, status, *_) in messages]

        found = asyncio.run(received())
    assert found == [
        ("old", None, LitAPIStatus.ERROR),
        ("a", "answer a", LitAPIStatus.OK),
        ("b", "answer b", LitAPIStatus.ERROR),
        ("c", "answer c", LitAPIStatus.OK),
    ]


@pytest.mark.slow
def test_two_workers_share_what_comes(students: dict[str, str], tmp_path: Path) -> None:
    """A request of many pairs isn't one worker's: they are asked for one by one."""
    workers = ("--workers_per_device=2", "--threads=1", "--max_batch_size=8", "--batch_timeout=0.2")
    with running(tmp_path / "service.log", "--encoder", students["encoder"], *workers) as service:
        answers = [service.post("/fit", {"pairs": [PAIR] * 4}) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        scores = [fit["score"] for answer in answers for fit in answer.json()["answers"]]
        assert len(scores) == 20
        assert max(scores) - min(scores) < 1e-5
        batches = [service.line_of(answer.headers["x-request-id"])["batch"] for answer in answers]
    assert min(batches) < 4, batches
