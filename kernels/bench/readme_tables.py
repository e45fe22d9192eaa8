"""Put the recorded results into the READMEs, between `<!-- table: NAME -->` and `<!-- end -->`.

    python kernels/bench/readme_tables.py           # write
    python kernels/bench/readme_tables.py --check   # exit 1 if a README says something else than the results

So no figure in a README is typed by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import block_skipping
import export
import prefix_sharing
import scale
import service
import signals
import training_step
from lantern_kernels.bench import linear, logits

REPOSITORY = Path(__file__).parent.parent.parent
RESULTS = REPOSITORY / "kernels" / "results"
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "training_step_cpu": training_step.table,
    "losses_cpu": lambda report: f"{linear.table(report['linear'])}\n\n{logits.table(report['logits'])}",
    "block_skipping_cpu": block_skipping.table,
    "signals_cpu": signals.table,
    "prefix_sharing_cpu": prefix_sharing.table,
    "export_cpu": export.table,
    "service_cpu": service.table,
    "scale_cpu": scale.table,
}
PAGES = ("README.md", "kernels/README.md", "docs/scale.md")
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with each marked table made anew from its results."""
    return MARKED.sub(lambda match: f"{match[1]}{render(match[2])}\n{match[3]}", text)


def render(name: str) -> str:
    """A recorded result as a table, with the machine that it was taken on."""
    path = RESULTS / f"{name}.json"
    report = json.loads(path.read_text())
    machine = report["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    taken_on = f"{machine['cpu']}, {machine['threads']} threads, {versions}"
    return f"\n{TABLES[name](report)}\n\nFrom {path.relative_to(REPOSITORY)}: {taken_on}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a README isn't up to date")
    arguments = parser.parse_args()
    stale = []
    for readme in (REPOSITORY / page for page in PAGES):
        text = readme.read_text()
        if (new := filled(text)) != text:
            stale.append(str(readme.relative_to(REPOSITORY)))
            if not arguments.check:
                readme.write_text(new)
    if stale:
        print(f"{'Out of date' if arguments.check else 'Written'}: {', '.join(stale)}")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
