"""Measures a service under load: python -m lantern_pl.serving.load --encoder FOLDER --clients 64 --requests 2000

Starts `lantern serve` on the encoder, and compares it with the bare model: pairs a second of the encoder teacher in batches
of the same size, with tokenizing, on the same texts. With --url it asks a service that is already there, and leaves the
bare model out.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> int:
    options = _read_options()
    from lantern_pl.data.sample import make_pairs

    lines = Path(options.pairs).read_text().splitlines() if options.pairs else ()
    rows = [json.loads(line) for line in lines] or make_pairs(512, seed=7)
    texts = [{name: row[name] for name in ("job_text", "candidate_text")} for row in rows]
    figures: dict[str, Any] = {"clients": options.clients, "requests": options.requests, "pairs_a_request": options.group}
    if options.url:
        figures["service"] = asyncio.run(load(options.url, texts, options.clients, options.requests, options.group))
    else:
        bare = [bare_throughput(options.encoder, texts, options.batch_size)]
        by_length = sorted(texts, key=lambda row: sum(map(len, row.values())))
        with Service(options.encoder, options.batch_size, options.options) as service:
            warm = min(200, options.requests)
            asyncio.run(load(service.url, texts, options.clients, warm, options.group))
            sampler = MemorySampler(service.process.pid)
            figures["service"] = asyncio.run(
                load(service.url, texts, options.clients, options.requests, options.group, sampler.sample)
            )
            figures["memory"] = sampler.figures()
        # Before and after, since a machine isn't the same all the time.
        bare.append(bare_throughput(options.encoder, texts, options.batch_size))
        figures["bare_pairs_a_second"] = [round(rate, 1) for rate in bare]
        # What a script gets that has all pairs in hand and puts those of like length together.
        sorted_rate = bare_throughput(options.encoder, by_length, options.batch_size)
        figures["bare_sorted_by_length_pairs_a_second"] = round(sorted_rate, 1)
        figures["share_of_bare_sorted"] = round(figures["service"]["pairs_a_second"] / sorted_rate, 3)
        figures["share_of_bare"] = round(figures["service"]["pairs_a_second"] / (sum(bare) / 2), 3)
    print(json.dumps(figures, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--encoder", metavar="FOLDER", help="serve this encoder, and compare with it")
    where.add_argument("--url", help="a running service, such as http://127.0.0.1:8000")
    parser.add_argument("--pairs", metavar="FILE", help=".jsonl with job_text and candidate_text; default: sample data")
    parser.add_argument("--clients", type=int, default=64, help="that ask at the same time")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--group", type=int, default=1, help="pairs in a request")
    parser.add_argument("--batch_size", type=int, default=32, help="of the service and of the bare model")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("options", nargs="*", help="after --: more options of lantern serve")
    return parser.parse_args()


async def load(
    url: str, texts: Sequence[dict[str, str]], clients: int, requests: int, group: int = 1, often: Any = None
) -> dict[str, Any]:
    """Ask /fit so many times from so many clients, each of which sends its next request when it has its answer.

    often: called after every 100th answer. Returns statuses, pairs a second, and latencies in milliseconds.
    """
    import aiohttp

    todo = iter(range(requests))
    seconds: list[float] = []
    statuses: Counter[str] = Counter()

    async def client(session: aiohttp.ClientSession) -> None:
        for number in todo:
            chosen = [texts[(number * group + k) % len(texts)] for k in range(group)]
            body = chosen[0] if group == 1 else {"pairs": chosen}
            began = time.perf_counter()
            async with session.post(url + "/fit", json=body) as response:
                await response.read()
                statuses[str(response.status)] += 1
            seconds.append(time.perf_counter() - began)
            if often is not None and len(seconds) % 100 == 0:
                often()

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        took = time.perf_counter() - began
    seconds.sort()
    quantiles = {f"p{q}_ms": round(1000 * seconds[min(len(seconds) - 1, len(seconds) * q // 100)], 1) for q in (50, 90, 99)}
    return {"statuses": dict(statuses), "pairs_a_second": round(requests * group / took, 1), **quantiles}


def bare_throughput(folder: str, texts: Sequence[dict[str, str]], batch_size: int, least_seconds: float = 10.0) -> float:
    """Pairs a second of the model in batches, texts in, probabilities out; in a process of its own, as the service is."""
    code = f"""
import json, sys, time
from lantern_pl.data.pair import Pair
from lantern_pl.model_files import quiet_transformers, read_manifest
from lantern_pl.tasks import Task
from lantern_pl.teachers.classifier import EncoderTeacher
quiet_transformers()
about = read_manifest({folder!r})
teacher, task = EncoderTeacher({folder!r}, about["data"]["max_length"]), Task(**about["task"])
pairs = [Pair("", "", "", row["job_text"], row["candidate_text"]) for row in json.load(sys.stdin)]
teacher.level_probs(pairs[:{batch_size}], task)
began, done = time.perf_counter(), 0
while time.perf_counter() - began < {least_seconds}:
    start = done % len(pairs)
    done += len(teacher.level_probs(pairs[start : start + {batch_size}], task).probs)
print(done / (time.perf_counter() - began))
"""
    ran = subprocess.run([sys.executable, "-c", code], input=json.dumps(list(texts)), capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return float(ran.stdout)


class Service:
    """`lantern serve` on an encoder in a process of its own, on a free port; a context."""

    def __init__(self, encoder: str, batch_size: int, more: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "lantern_pl", "serve", "--encoder", encoder, "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--max_batch_size", str(batch_size), *more], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Service":
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith("Serving"):
            if not line:
                raise SystemExit("the service didn't start")
        # What it logs is read and left, or it would wait for a reader.
        import threading

        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class MemorySampler:
    """Private memory of a process and all that it has started, in MB, each time it's asked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.megabytes: list[float] = []

    def sample(self) -> None:
        self.megabytes.append(sum(map(_private, _family(self.pid))) / 1024)

    def figures(self) -> dict[str, float]:
        """Means of the first and the last quarter of the samples, and the largest."""
        quarter = max(1, len(self.megabytes) // 4)
        first, last = self.megabytes[:quarter], self.megabytes[-quarter:]
        return {
            "first_quarter_mb": round(sum(first) / len(first), 1),
            "last_quarter_mb": round(sum(last) / len(last), 1),
            "most_mb": round(max(self.megabytes), 1),
        }


def _family(pid: int) -> list[int]:
    """A process and all that it and they have started."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # After the name, which may hold anything: state, parent.
            parents.setdefault(int((folder / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(folder.name))
    family = [pid]
    for member in family:
        family += parents.get(member, [])
    return family


def _private(pid: int) -> int:
    """Kilobytes that a process alone holds."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    raise SystemExit(main())
