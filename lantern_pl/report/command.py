"""`lantern report`: what was made from what, and how good it is, on one page that needs no network."""

import sys
from pathlib import Path

from lantern_pl.errors import CommandParser, UserError
from lantern_pl.private_files import write_private_text

_ABOUT = """\
Write one HTML file about one or several runs: what was trained from what, curves, figures with their intervals, confusion,
calibration, what was kept of the teacher, audit, cost, and answers side by side. What a run lacks is named with the command
that makes it: lantern test, lantern audit, lantern export. The file needs nothing else and no network.
"""
_MORE = """\
examples:
  lantern report runs/quickstart
  lantern report runs/lantern/encoder runs/lantern/decoder --compare runs/lantern/comparison.json --out lantern.html
"""


def report_command(argv: list[str]) -> int:
    """Run `lantern report ...`; `argv` is what follows `report`. Raises UserError, and SystemExit after help."""
    import argparse

    parser = CommandParser(
        prog="lantern report", description=_ABOUT, epilog=_MORE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, as lantern fit leaves it (run_dir)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page; default: RUN/report.html of the first run. An earlier one is replaced",
    )
    parser.add_argument("--title", help="default: the runs' names")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="the figures that lantern compare has written (its `out`)"
    )
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE", action="append", default=[],
        help="pairs that labels may have been made of, where the labels don't say; known by their content. May be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--max_samples", type=int, default=12, metavar="N", help="most answered pairs of each run (default: 12)"
    )
    parser.add_argument(
        "--without_texts", action="store_true", help="leave out jobs, candidates and answers: they are personal data"
    )
    parser.add_argument(
        "--check_all", action="store_true", help="read weights and data of any size to see whether they have changed"
    )
    options = parser.parse_args(argv)
    if options.max_samples < 0:
        raise UserError(f"--max_samples is {options.max_samples}: give 0 or more.")

    from lantern_pl.report.collect import read_runs
    from lantern_pl.report.files import ComparisonFile, read_form
    from lantern_pl.report.identities import Checker
    from lantern_pl.report.page import render
    from lantern_pl.report.provenance import trace

    runs = read_runs(options.runs)
    for path in options.pairs:
        if not path.exists():
            raise UserError(f"--pairs is {str(path)!r}, which isn't there.")
    comparison = read_form(options.compare, ComparisonFile) if options.compare else None
    out = options.out or options.runs[0] / "report.html"
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out is {str(out)!r}: give a file in a folder that is there, such as report.html.")
    provenance = trace(runs, options.pairs, Checker(everything=options.check_all))
    samples = 0 if options.without_texts else options.max_samples
    page = render(runs, provenance, comparison, options.title, samples, options.without_texts)
    write_private_text(out, page)
    for run in runs:
        for problem in run.problems:
            print(f"{run.name}: {problem}", file=sys.stderr)
    for subject, _, why in provenance.faults():
        print(f"{subject}: {why}", file=sys.stderr)
    print(f"Wrote {out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(page.encode()) / 1e6:.1f} MB.")
    if any(run.test and run.test.samples for run in runs):
        held = "It holds no texts." if not samples else "It holds texts of persons: it's readable by its owner alone."
        print(held)
    return 0
