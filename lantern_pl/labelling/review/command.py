"""`lantern review`: a person's filter on labels, in a browser, or rules in a person's stead."""

import argparse
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from lantern_pl.config_file import read_config
from lantern_pl.errors import CommandParser, UserError, did_you_mean
from lantern_pl.labelling.review.decisions import accepted_by_rule, by_pair, decide, is_of_label, persons
from lantern_pl.labelling.review.exchange import export_decisions, read_decisions
from lantern_pl.labelling.review.labelled import Labels, read_labels
from lantern_pl.labelling.review.rules import Rules
from lantern_pl.labelling.review.seed import write_seed
from lantern_pl.labelling.review.session import Session
from lantern_pl.labelling.store import Decision, LabelStore

RULES = "rules"
"""The reviewer whom rules decide for, where no name is given."""

EPILOG = """\
What passes is written to DIR/seed.jsonl and seed.parquet, with who decided and when in each row, and counted in
seed.manifest.json. Decisions are kept in DIR at once, none is overwritten, and the same command again goes on where you
stopped.

The page, in the browser of this machine alone. It shows divided samples first, then the least confident labels:
  a  accept what the form says; where you changed it, that is an edit     1 2 3  choose the level
  e  edit the explanation (Esc leaves it, Ctrl+Enter accepts)             n      the next pair
  r  reject the label                                                     p      the one before
Two persons review the same folder one after the other, each by name. What they disagree on comes back to both, flagged, and
is left out of the seed until most of those who decided are of one opinion.

Rules instead of a person, or before one. First see what they would let pass:
  lantern review --labels labels/black_box --auto-accept --min-agreement 0.8 --dry-run
Labels of a teacher that paraphrases its evidence and gives no votes:
  lantern review --labels labels/bought --auto-accept --evidence supported --min-support 0.5 --min-confidence 0.8

Another annotation tool:
  lantern review --labels labels/black_box --export for_the_tool.jsonl
  lantern review --labels labels/black_box --import from_the_tool.jsonl --reviewer ann
The fields are described in lantern_pl/labelling/review/exchange.py.
"""


def review_command(argv: list[str]) -> int:
    """Run `lantern review ...`; `argv` is what follows `review`. Raises UserError, and SystemExit after help."""
    options = _read_options(argv)
    rules = _rules(options)
    labels = read_labels(options.labels, options.levels.split(",") if options.levels else None)
    if not _acts(options):
        from lantern_pl.labelling.review.page import open_page  # before the store is taken: it may be that it can't be

    with LabelStore(options.labels, create=False) as store:
        if options.import_file:
            _import(options.import_file, labels, store, options.reviewer)
        if rules is not None:
            _auto_accept(rules, labels, store, options.reviewer or RULES, options.dry_run)
        code = 0
        if not _acts(options):
            page = open_page(Session(labels, store, options.reviewer), options.port, options.open)
            print(f"Review as {options.reviewer}: {page.local_url}   Ctrl-C here ends it and writes the seed.", flush=True)
            try:
                code = _wait()
            finally:
                page.close(verbose=False)
        decisions = store.decisions()
        if not (
            options.dry_run or (options.export and not (options.import_file or options.auto_accept or options.write_seed))
        ):
            _tell(write_seed(options.labels, labels, decisions), options.labels)
        if options.export:
            count = export_decisions(options.export, labels, decisions)
            print(f"{options.export}: {count} lines")
    return code


def _read_options(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="lantern review",
        description="Look at a teacher's labels, and accept, edit or reject them: in a browser, or by rules.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with the options below, such as auto_accept: true")
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="folder of `lantern label`")
    parser.add_argument("--reviewer", metavar="NAME", help="who decides; it goes into the seed")
    parser.add_argument("--levels", metavar="A,B,...", help="the levels, worst first; default: as DIR/manifest.json says")
    page = parser.add_argument_group("the page (pip install 'lantern-pl[review]')")
    page.add_argument("--port", type=int, metavar="N", help="of 127.0.0.1; default: the first free one from 7860 on")
    page.add_argument("--open", action="store_true", help="open it in the default browser")
    rules = parser.add_argument_group("rules")
    rules.add_argument("--auto-accept", action="store_true", help="accept what passes all rules and no person has decided")
    rules.add_argument(
        "--evidence",
        choices=["verbatim", "supported", "any"],
        help="verbatim: every quote stands in the candidate's text, and there is one (the default); supported: see "
        "--min-support; any: it isn't looked at",
    )
    rules.add_argument(
        "--min-support",
        type=float,
        metavar="X",
        help="with --evidence supported: the share of each evidence's words that stand in the texts; default: 0.5",
    )
    rules.add_argument("--min-agreement", type=float, metavar="X", help="the level's share of the votes, of two or more")
    rules.add_argument("--min-confidence", type=float, metavar="X", help="the teacher's own confidence")
    rules.add_argument("--max-level-share", type=float, metavar="X", help="the most that one level may be of the accepted")
    rules.add_argument("--allow-flagged", action="store_true", help="accept also what holds hidden characters or injections")
    rules.add_argument("--dry-run", action="store_true", help="say what --auto-accept would do, and do nothing")
    files = parser.add_argument_group("files")
    files.add_argument("--export", type=Path, metavar="FILE", help="write pairs and decisions as .jsonl")
    files.add_argument("--import", type=Path, metavar="FILE", dest="import_file", help="take decisions from .jsonl")
    files.add_argument("--write-seed", action="store_true", help="write the seed from what is decided, and end")
    return parser.parse_args(_with_config(argv, parser))


def _with_config(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The options that a config gives, as if they had been typed first: what is typed wins."""
    files = CommandParser(prog=parser.prog, add_help=False)
    files.add_argument("--config", type=Path)
    given, typed = files.parse_known_args(list(argv))
    if given.config is None:
        return typed
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    options: list[str] = []
    for key, value in read_config(str(given.config)).items():
        option = key.replace("_", "-")
        if option not in known:
            raise UserError(f"{given.config}: there is no option {key!r}. {did_you_mean(option, known)}")
        if value is True:
            options.append(f"--{option}")
        elif value is not None and value is not False:
            options.append(f"--{option}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return [*options, *typed]


def _acts(options: argparse.Namespace) -> bool:
    """Whether there is something else to do than to show the page."""
    return bool(options.auto_accept or options.export or options.import_file or options.write_seed)


def _rules(options: argparse.Namespace) -> Rules | None:
    given = {name: getattr(options, name) for name in ("min_agreement", "min_confidence", "max_level_share")}
    others = {"evidence": options.evidence, "min_support": options.min_support}
    if not options.auto_accept:
        flags = {**given, **others, "allow_flagged": options.allow_flagged or None, "dry_run": options.dry_run or None}
        stray = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None]
        if stray:
            raise UserError(f"{stray[0]} is about --auto-accept: add that, or leave it out.")
        if not _acts(options) and not (options.reviewer or "").strip():
            raise UserError("Say who reviews: --reviewer NAME. It goes into the seed.")
        return None
    if options.dry_run and (options.import_file or options.write_seed):
        raise UserError("--dry-run changes nothing: leave --import and --write-seed for another time.")
    if options.min_support is not None and options.evidence != "supported":
        raise UserError("--min-support needs --evidence supported.")
    least = 0.5 if options.min_support is None else options.min_support
    return Rules(
        no_flags=not options.allow_flagged,
        evidence_verbatim=options.evidence in (None, "verbatim"),
        min_support=least if options.evidence == "supported" else None,
        **given,
    )


def _import(path: Path, labels: Labels, store: LabelStore, reviewer: str | None) -> None:
    fresh, repeated = read_decisions(path, labels, store.decisions(), reviewer)
    store.decide(*fresh)
    again = f", {repeated} were there already" if repeated else ""
    print(f"{path}: {len(fresh)} decisions imported{again}")


def _auto_accept(rules: Rules, labels: Labels, store: LabelStore, reviewer: str, dry_run: bool) -> None:
    decided = by_pair(store.decisions())
    pairs = [pair for pair in labels.pairs.values() if not persons(decided.get(pair.pair_id, ()))]
    judged = rules.judge(pairs, labels.levels)
    fresh: list[Decision] = []
    for pair_id, failed in judged.items():
        pair, before = labels.pairs[pair_id], accepted_by_rule(decided.get(pair_id, ()))
        if not failed and (before is None or not is_of_label(before.level, before.explanation, pair)):
            fresh.append(decide(pair, reviewer, "accept", rule=str(rules)))
        elif failed and before:
            # Other rules than before, or other labels: what they let pass then goes back to a person.
            fresh.append(decide(pair, reviewer, "reject", note=", ".join(failed), rule=str(rules)))
    if not dry_run:
        store.decide(*fresh)
    passed = sum(not failed for failed in judged.values())
    back = sum(decision.verdict == "reject" for decision in fresh)
    print(f"Rules: {rules}")
    print(
        f"{'Would accept' if dry_run else 'Accepted'} {passed} of {len(judged)} pairs that no person has decided"
        + (f"; {back} that earlier rules had let pass go back to a person" if back else "")
    )
    for name, count in Counter(name for failed in judged.values() for name in failed).most_common():
        print(f"  {count} fail {name}{_hint(name, [pair for pair in pairs if name in judged[pair.pair_id]])}")


def _hint(rule: str, failing: Sequence[Any]) -> str:
    """What to know of a rule that some labels can't be judged by."""
    missing = {
        "min_agreement": (sum(pair.agreement is None for pair in failing), "without votes of two samples or more"),
        "min_confidence": (sum(pair.confidence is None for pair in failing), "without a confidence"),
        "evidence_verbatim": (sum(not list(pair.evidence()) for pair in failing), "without evidence"),
        "min_support": (sum(not list(pair.evidence()) for pair in failing), "without evidence"),
    }
    count, what = missing.get(rule, (0, ""))
    return f", {count} of them {what}" if count else ""


def _wait() -> int:
    """Until Ctrl-C, which is how a review ends, or SIGTERM. Returns the exit code."""
    ended = threading.Event()
    codes: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        codes.append(0 if number == signal.SIGINT else 128 + number)
        ended.set()

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return codes[0]


def _tell(manifest: dict[str, Any], folder: Path) -> None:
    left_out = ", ".join(f"{count} {why}" for why, count in manifest["left_out"].items() if count)
    if manifest["pairs"]:
        levels = ", ".join(f"{count} {level}" for level, count in manifest["by_level"].items())
        print(f"Seed: {manifest['pairs']} pairs ({levels}) in {folder / 'seed.jsonl'} and .parquet", end="")
    else:
        print("Seed: no pair has passed yet, none is written", end="")
    print(f"; left out: {left_out}" if left_out else "")
    for found in manifest["agreement"]:
        names = " and ".join(found["reviewers"])
        kappas = ", ".join(f"{name} {_kappa(found[key])}" for name, key in (("kappa", "kappa"), ("weighted", "quadratic")))
        print(f"Agreement of {names}: the same on {found['same']} of {found['pairs']} pairs, {kappas}")


def _kappa(found: dict[str, Any]) -> str:
    return f"undefined ({found['reason']})" if found["value"] is None else f"{found['value']:.2f}"
