"""`lantern data`: make sample data."""

import hashlib
from collections import Counter
from pathlib import Path

from lantern_pl.data.sample import make_pairs, write_sample
from lantern_pl.errors import CommandParser
from lantern_pl.tasks.task import Task


def data_command(argv: list[str]) -> int:
    """Run `lantern data ...`; `argv` is what follows `data`. Raises UserError, and SystemExit after help."""
    parser = CommandParser(prog="lantern data", description="Make data to try things with.")
    commands = parser.add_subparsers(required=True, metavar="sample")
    sample = commands.add_parser(
        "sample",
        help="write labelled (candidate, job) pairs of our own text",
        description="Write DIR/pairs.jsonl and DIR/README.md: (candidate, job) pairs of our own text, labelled by the "
        "rule-based rubric, for trying things and for tests. The same seed gives the same bytes, and fewer pairs are "
        "the first ones of more. The fields are described in lantern_pl/data/records.py.",
        epilog="example: lantern data sample --pairs 200 --seed 0 --out data/sample",
    )
    sample.add_argument("--pairs", type=int, default=200, metavar="N", help="how many pairs; default: %(default)s")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other pairs; default: %(default)s")
    sample.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, made where missing")
    sample.add_argument("--overwrite", action="store_true", help="replace other pairs that are in DIR already")
    arguments = parser.parse_args(argv)
    return _sample(arguments.pairs, arguments.seed, arguments.out, arguments.overwrite)


def _sample(count: int, seed: int, out: Path, overwrite: bool) -> int:
    pairs = make_pairs(count, seed)
    written = write_sample(out, pairs, seed, overwrite)
    levels = Counter(pair["level"] for pair in pairs)
    jobs, candidates = (len({pair[side] for pair in pairs}) for side in ("job_id", "candidate_id"))
    digest = hashlib.sha256((out / "pairs.jsonl").read_bytes()).hexdigest()
    print(f"{'Wrote' if written else 'Already there:'} {out / 'pairs.jsonl'}: {len(pairs)} pairs of {jobs} jobs", end=" ")
    print(f"and {candidates} candidates, seed {seed}")
    print("Levels by the rubric: " + ", ".join(f"{levels[level]} {level}" for level in Task().levels))
    print(f"sha256 {digest}")
    return 0
