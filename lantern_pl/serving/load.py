"""Measures a service under load: python -m lantern_pl.serving.load --encoder FOLDER --clients 64 --requests 2000

Starts `lantern serve` on the encoder, and compares it with the bare model: pairs a second of the same form, with tokenizing,
on the same texts, in torch by batches of the same size. With --url it asks a service that is already there, and leaves the
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
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from lantern_pl.serving.config import EncoderFormat


def main() -> int:
    options = _read_options()
    lines = Path(options.pairs).read_text().splitlines() if options.pairs else ()
    texts = only_texts(json.loads(line) for line in lines) or sample_texts()
    if options.url:
        asked = load(options.url, texts, options.clients, options.requests, options.group)
        figures = {"clients": options.clients, "requests": options.requests, "service": asyncio.run(asked)}
    else:
        figures = measure(
            options.encoder,
            options.format,
            texts,
            options.clients,
            options.requests,
            options.group,
            options.batch_size,
            more=options.options,
        )
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
    parser.add_argument("--format", choices=get_args(EncoderFormat), default="torch", help="what runs the encoder")
    parser.add_argument("--clients", type=int, default=64, help="that ask at the same time")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--group", type=int, default=1, help="pairs in a request")
    parser.add_argument("--batch_size", type=int, default=32, help="of the service and of the bare model")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("options", nargs="*", help="after --: more options of lantern serve")
    return parser.parse_args()


def sample_texts(count: int = 512) -> list[dict[str, str]]:
    """Texts of the sample generator."""
    from lantern_pl.data.sample import make_pairs

    return only_texts(make_pairs(count, seed=7))


def only_texts(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    return [{name: row[name] for name in ("job_text", "candidate_text")} for row in rows]


def measure(
    encoder: str,
    form: EncoderFormat,
    texts: Sequence[dict[str, str]],
    clients: int,
    requests: int,
    group: int = 1,
    batch_size: int = 32,
    bare_seconds: float = 10.0,
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """A service's figures and the bare model's, which are taken before and after, since a machine isn't the same all the
    time. `share_of_bare_sorted`: of what a script gets that has all pairs in hand and puts those of like length together."""

    def bare(pairs: Sequence[dict[str, str]]) -> float:
        return bare_throughput(encoder, form, pairs, batch_size, bare_seconds)

    before = bare(texts)
    with Service(encoder, batch_size, ["--encoder_format", form, *more]) as service:
        asyncio.run(load(service.url, texts, clients, min(200, requests), group))  # to warm up
        sampler = MemorySampler(service.process.pid)
        found = asyncio.run(load(service.url, texts, clients, requests, group, sampler.sample))
    after, by_length = bare(texts), bare(sorted(texts, key=lambda row: sum(map(len, row.values()))))
    return {
        "form": form,
        "clients": clients,
        "requests": requests,
        "pairs_a_request": group,
        "service": found,
        "memory": sampler.figures(),
        "bare_pairs_a_second": [round(before, 1), round(after, 1)],
        "bare_sorted_by_length_pairs_a_second": round(by_length, 1),
        "share_of_bare": round(found["pairs_a_second"] / ((before + after) / 2), 3),
        "share_of_bare_sorted": round(found["pairs_a_second"] / by_length, 3),
    }


async def load(
    url: str, texts: Sequence[dict[str, str]], clients: int, requests: int, group: int = 1, often: Any = None
) -> dict[str, Any]:
    """Ask /fit so many times from so many clients, each of which sends its next request when it has its answer.

    often: called some forty times, and at the end: to look at memory takes time that is the service's. Returns statuses,
    pairs a second, and latencies in milliseconds.
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
            if often is not None and len(seconds) % max(1, requests // 40) == 0:
                often()

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        took = time.perf_counter() - began
    if often is not None:
        often()
    seconds.sort()
    quantiles = {f"p{q}_ms": round(1000 * seconds[min(len(seconds) - 1, len(seconds) * q // 100)], 1) for q in (50, 90, 99)}
    return {"statuses": dict(statuses), "pairs_a_second": round(requests * group / took, 1), **quantiles}


def bare_throughput(
    folder: str, form: EncoderFormat, texts: Sequence[dict[str, str]], batch_size: int, least_seconds: float
) -> float:
    """Pairs a second of the model in batches, texts in, probabilities out; in a process of its own, as the service is."""
    code = f"""
import json, sys, time
from lantern_pl.data.pair import Pair
from lantern_pl.model_files import quiet_transformers
from lantern_pl.serving.students import read_student
quiet_transformers()
student = read_student({folder!r}, "encoder", {form!r})
if {form!r} == "torch":
    from lantern_pl.teachers.classifier import EncoderTeacher
    teacher = EncoderTeacher(student.folder, student.max_length)
    ask = lambda pairs: teacher.level_probs(pairs, student.task).probs
else:
    from lantern_pl.export.onnx_runtime import FILES, OnnxEncoder
    ask = OnnxEncoder(student.folder, FILES[{form!r}]).level_probs
pairs = [Pair("", "", "", row["job_text"], row["candidate_text"]) for row in json.load(sys.stdin)]
ask(pairs[:{batch_size}])
began, done = time.perf_counter(), 0
while time.perf_counter() - began < {least_seconds}:
    start = done % len(pairs)
    done += len(ask(pairs[start : start + {batch_size}]))
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
