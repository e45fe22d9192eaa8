"""How fast questions are asked through the teacher and kept in the store, against litellm alone.

    python plugins/lantern-teacher-litellm/bench/throughput.py              # the ratio, and the memory
    python plugins/lantern-teacher-litellm/bench/throughput.py --latency 0.2 --requests 2000

Both ask the same local server in turns, in the same process, and each round is compared by itself: what else the machine
does hits both. litellm alone is `litellm.acompletion` in as many loops as questions are in flight, and its answers
are dropped. The teacher's are put into a label store, and each is waited for until it's durable.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
from lantern_teacher_litellm import provider
from lantern_teacher_litellm.teacher import LiteLLMTeacher

from lantern_pl.data.sample import make_pairs
from lantern_pl.labelling.store import Answered, LabelStore
from lantern_pl.tasks import Task
from lantern_pl.teachers.chat import ChatRequest

HERE = Path(__file__).parent


_seeds = itertools.count()


def questions(count: int) -> list[ChatRequest]:
    """Questions of an ordinary size, each of which was never asked before."""
    task = Task()
    prompts = [task.render_prompt(row["job_text"], row["candidate_text"]) for row in make_pairs(200, seed=0)]
    return [
        ChatRequest(({"role": "user", "content": prompts[at % len(prompts)]},), seed=next(_seeds)) for at in range(count)
    ]


async def rate(
    ask: Callable[[ChatRequest], Awaitable[None]], asked: list[ChatRequest], in_flight: int
) -> tuple[float, float]:
    """Questions a second, and milliseconds of this process's CPU for each."""
    rest = iter(asked)

    async def work() -> None:
        for request in rest:
            await ask(request)

    started, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as workers:
        for _ in range(in_flight):
            workers.create_task(work())
    return len(asked) / (time.perf_counter() - started), (time.process_time() - cpu) / len(asked) * 1e3


class Both:
    """litellm alone, and the teacher with the store."""

    def __init__(self, model: str, url: str, folder: Path, in_flight: int) -> None:
        self.teacher = LiteLLMTeacher(model, url, max_in_flight=in_flight, schema="never")
        self.store = LabelStore(folder)
        self.model, self.url, self.in_flight = model, url, in_flight
        self.teacher_key = self.teacher.cache_key()
        self.litellm = provider.load()

    async def alone(self, request: ChatRequest) -> None:
        await self.litellm.acompletion(
            model=self.model,
            messages=[dict(message) for message in request.messages],
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
            api_base=self.url,
            api_key="no-key",
            timeout=120.0,
            num_retries=0,
            max_retries=0,
        )

    async def kept(self, request: ChatRequest) -> None:
        key = request.key(self.teacher_key)
        if self.store.get(key) is not None:
            raise RuntimeError("a question was asked twice")
        reply = await self.teacher.chat(request)
        row = Answered(
            key=key,
            stage="judge",
            subject=key[:16],
            job_id=key[:8],
            candidate_id=key[8:16],
            pair_id=key[:16],
            sample=0,
            state="ok",
            reason=None,
            raw=reply.text,
            parsed={"level": "high", "confidence": 0.9},
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cost=reply.cost,
            repairs=0,
            teacher="bench",
            seconds=reply.attempts[-1].seconds,
        )
        await asyncio.wrap_future(self.store.put(row, reply.attempts))

    async def compare(self, requests: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
        rates: dict[str, list[tuple[float, float]]] = {"litellm alone": [], "teacher and store": []}
        ways = {"litellm alone": self.alone, "teacher and store": self.kept}
        for ask in ways.values():
            await rate(ask, questions(200), self.in_flight)
        for turn in range(rounds):
            # Whoever comes second finds other caches: each does every other time.
            for name, ask in list(ways.items())[:: 1 if turn % 2 else -1]:
                rates[name].append(await rate(ask, questions(requests), self.in_flight))
        return rates

    async def memory(self, requests: int, parts: int = 10) -> list[float]:
        """MiB of this process after each part of the requests."""
        process, found = psutil.Process(), []
        for _ in range(parts):
            await rate(self.kept, questions(requests // parts), self.in_flight)
            found.append(process.memory_info().rss / 2**20)
        return found


def most_open(url: str) -> int:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/most") as answer:
        return int(json.load(answer))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="openai/m", help="hosted_vllm/m is litellm's faster way")
    parser.add_argument("--requests", type=int, default=400, help="in each round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that the server takes for an answer")
    parser.add_argument("--memory", type=int, default=0, help="how many requests to watch the memory over, such as 20000")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()

    command = [sys.executable, str(HERE / "fast_server.py"), "--latency", str(arguments.latency)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder:
            both = Both(arguments.model, url, Path(folder) / "labels", arguments.in_flight)
            await both.teacher.get_ready_to_chat()
            rates = await both.compare(arguments.requests, arguments.rounds)
            figures: dict[str, object] = {}
            medians: list[list[float]] = []
            for name, found in rates.items():
                each = [list(values) for values in zip(*found, strict=True)]
                figures[name] = dict(zip(("requests/s", "CPU ms"), each, strict=True))
                median = [statistics.median(values) for values in each]
                medians.append(median)
                print(f"{name:18}  {median[0]:6.1f} requests/s  {median[1]:5.2f} ms CPU each")
            (_, alone_cpu), (kept, kept_cpu) = medians
            # Round by round: what else the machine does changes from one to the next.
            ratios = [kept_rate / alone_rate for (alone_rate, _), (kept_rate, _) in zip(*rates.values(), strict=True)]
            figures["ratio"] = statistics.median(ratios)
            print(f"median of the rounds' ratios {figures['ratio']:.3f}; ratio of CPU {alone_cpu / kept_cpu:.3f}")
            if arguments.latency:
                ideal = arguments.in_flight / arguments.latency
                most_open(url)
                await rate(both.kept, questions(arguments.requests), arguments.in_flight)
                print(f"{kept / ideal:.0%} of the {ideal:.0f} requests/s that {arguments.in_flight} at once could be")
                figures["most open"] = most_open(url)
                print(f"the teacher had {figures['most open']} open at once")
            if arguments.memory:
                memory = await both.memory(arguments.memory)
                figures["memory in MiB"] = memory
                print(f"MiB after each tenth of {arguments.memory} requests: {', '.join(f'{m:.0f}' for m in memory)}")
            both.store.close()
            await both.teacher.close()
    finally:
        server.kill()
        server.wait()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
