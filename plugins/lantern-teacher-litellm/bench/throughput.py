"""How fast `lantern label` asks through the teacher and keeps the answers, against litellm alone.

    python plugins/lantern-teacher-litellm/bench/throughput.py              # the ratio, and the memory
    python plugins/lantern-teacher-litellm/bench/throughput.py --latency 0.2 --requests 2000

Both ask the same local server the same questions in turns, in the same process, and each round is compared by itself: what
else the machine does hits both. litellm alone is `litellm.acompletion` in as many loops as questions are in flight, and its
answers are dropped. The other is a label run of one stage: it makes the questions, asks them, checks the answers, puts them
into a label store, and waits for each until it's durable.
"""

import argparse
import asyncio
import importlib.metadata
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

from lantern_pl.data.pair import Pair
from lantern_pl.data.sample import make_pairs
from lantern_pl.labelling.account import Budget
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.staged import StagedRun
from lantern_pl.labelling.store import LabelStore
from lantern_pl.tasks import Task
from lantern_pl.tasks.guide import Guide
from lantern_pl.tasks.stage import Stage

HERE = Path(__file__).parent


LEVELS = Task().levels
STAGE = Stage(
    name="judge",
    reads=["job_text", "candidate_text"],
    sections=["task", "evaluation", "output"],
    ask="Give the level, your confidence and an explanation.",
    output={"level": "level", "confidence": "share", "explanation": "text"},
)
GUIDE = Guide(stages=[STAGE])
"""One question per pair, of an ordinary size, that the server's one answer fits."""

_numbers = itertools.count()
_texts = [(row["job_text"], row["candidate_text"]) for row in make_pairs(200, seed=0)]


def fresh(count: int) -> list[Pair]:
    """Pairs that were never asked about before."""
    numbers = [next(_numbers) for _ in range(count)]
    return [Pair(f"p{number}", f"j{number}", f"c{number}", *_texts[number % len(_texts)]) for number in numbers]


async def rate(label: Callable[[list[Pair]], Awaitable[None]], pairs: list[Pair]) -> tuple[float, float]:
    """Questions a second, and milliseconds of this process's CPU for each."""
    started, cpu = time.perf_counter(), time.process_time()
    await label(pairs)
    return len(pairs) / (time.perf_counter() - started), (time.process_time() - cpu) / len(pairs) * 1e3


class Both:
    """litellm alone, and the teacher with the store."""

    def __init__(self, model: str, url: str, folder: Path, in_flight: int) -> None:
        self.teacher = LiteLLMTeacher(model, url, max_in_flight=in_flight, schema="never")
        self.store = LabelStore(folder)
        self.config = LabelConfig(str(folder), "", self.teacher, guide=GUIDE, repair_turns=0)
        self.model, self.url, self.in_flight = model, url, in_flight
        self.litellm = provider.load()
        provider.opened()  # a run closes the connections that nobody else uses, and litellm alone keeps its own

    async def alone(self, pairs: list[Pair]) -> None:
        texts = [{"job_text": pair.job_text, "candidate_text": pair.candidate_text} for pair in pairs]
        rest = iter([GUIDE.messages(STAGE, shown, LEVELS) for shown in texts])

        async def work() -> None:
            for messages in rest:
                await self.litellm.acompletion(
                    model=self.model,
                    messages=list(messages),
                    temperature=0.0,
                    max_tokens=STAGE.max_tokens,
                    seed=0,
                    api_base=self.url,
                    api_key="no-key",
                    timeout=120.0,
                    num_retries=0,
                    max_retries=0,
                )

        async with asyncio.TaskGroup() as workers:
            for _ in range(self.in_flight):
                workers.create_task(work())

    async def kept(self, pairs: list[Pair]) -> None:
        run = StagedRun(self.config, pairs, self.store, Budget(None, None))
        await run.run(lambda stage, tally: None)
        tally = run.tallies[STAGE.name]
        if tally.asked != len(pairs) or tally.quarantined:
            raise RuntimeError(f"of {len(pairs)} questions {tally.asked} were asked, {tally.quarantined} in quarantine")

    async def compare(self, requests: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
        rates: dict[str, list[tuple[float, float]]] = {"litellm alone": [], "teacher and store": []}
        ways = {"litellm alone": self.alone, "teacher and store": self.kept}
        for ask in ways.values():
            await rate(ask, fresh(200))
        for turn in range(rounds):
            # Whoever comes second finds other caches: each does every other time.
            for name, ask in list(ways.items())[:: 1 if turn % 2 else -1]:
                rates[name].append(await rate(ask, fresh(requests)))
        return rates

    async def memory(self, requests: int, parts: int = 10) -> list[float]:
        """MiB of this process after each part of the requests."""
        process, found = psutil.Process(), []
        for _ in range(parts):
            await rate(self.kept, fresh(requests // parts))
            found.append(process.memory_info().rss / 2**20)
        return found


def most_open(url: str) -> int:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/most") as answer:
        return int(json.load(answer))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="openai/m", help="hosted_vllm/m is litellm's faster way")
    parser.add_argument("--requests", type=int, default=2000, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
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
            rates = await both.compare(arguments.requests, arguments.rounds)
            figures: dict[str, object] = {
                "model": arguments.model,
                "in flight": arguments.in_flight,
                "litellm": importlib.metadata.version("litellm"),
                "cores": psutil.cpu_count(),
            }
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
            figures["ratio of CPU"] = alone_cpu / kept_cpu
            print(f"median of the rounds' ratios {figures['ratio']:.3f}; ratio of CPU {figures['ratio of CPU']:.3f}")
            if arguments.latency:
                ideal = arguments.in_flight / arguments.latency
                most_open(url)
                await rate(both.kept, fresh(arguments.requests))
                print(f"{kept / ideal:.0%} of the {ideal:.0f} requests/s that {arguments.in_flight} at once could be")
                figures["most open"] = most_open(url)
                print(f"the teacher had {figures['most open']} open at once")
            if arguments.memory:
                memory = await both.memory(arguments.memory)
                figures["memory in MiB"] = memory
                print(f"MiB after each tenth of {arguments.memory} requests: {', '.join(f'{m:.0f}' for m in memory)}")
            both.store.close()
            await provider.closed(both.litellm)
    finally:
        server.kill()
        server.wait()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
