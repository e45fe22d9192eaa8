"""`lantern label`: label pairs with a teacher, take over labels from elsewhere, and forget a person."""

import asyncio
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jsonargparse
from rich.console import Console

from lantern_pl import plugins
from lantern_pl.config_errors import explain_all
from lantern_pl.config_parser import HOW_TO_ALLOW, ConfigParser, restrict_imports
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.errors import UserError
from lantern_pl.labelling.account import Budget, Price
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.display import Display
from lantern_pl.labelling.export import export, pair_flags, show_report, write_report
from lantern_pl.labelling.preflight import confirm, forecast, show, show_whole
from lantern_pl.labelling.purge import was_purged
from lantern_pl.labelling.staged import StagedRun
from lantern_pl.labelling.store import LabelStore
from lantern_pl.labelling.whole import WholeRun
from lantern_pl.model_files import quiet_transformers
from lantern_pl.plugin_checks import check_teacher
from lantern_pl.teachers import Teacher

INCOMPLETE = 3
"""Exit code of a run that the budget has ended."""
INTERRUPTED = 130


def label_command(argv: list[str]) -> int:
    """Run `lantern label ...`; `argv` is what follows `label`. Raises UserError, and SystemExit after help."""
    if argv[:1] and argv[0] in OTHERS:
        return OTHERS[argv[0]](argv[1:])
    quiet_transformers()
    options = _read_options(argv)
    config = LabelConfig(**{field.name: options[field.name] for field in fields(LabelConfig)})
    check_teacher(config.teacher)
    console = Console()
    pairs = read_pairs(config.pairs, config.task)[: config.limit]
    folder = Path(config.labels)
    price = Price(*config.teacher.price) if config.teacher.price else None
    with LabelStore(folder) as store:
        pairs = _admitted(pairs, store, config.exclude_flagged, console)
        budget = Budget(config.budget, price)
        run: StagedRun | WholeRun
        if config.explain and "chat" in config.teacher.capabilities:
            run = StagedRun(config, pairs, store, budget, options.retry_quarantined)
            costs = show(forecast(run), config.teacher.questions_to_get_ready(), price, config.budget, console)
        else:
            run = WholeRun(config, pairs, store, budget, options.retry_quarantined)
            costs = show_whole(run, console)
        if costs and not confirm(options.yes, config.budget):
            console.print("Nothing was asked.")
            return 0
        began = time.perf_counter()
        failure = _run(run, console)
        labels = (run.label(pair) for pair in pairs)
        figures = export(folder, pairs, labels, config.task.levels, _about(run, config))
        report = write_report(folder, run.tallies, time.perf_counter() - began, figures)
    show_report(report, folder, console)
    if failure is not None:
        raise failure
    if run.ended_by_budget:
        console.print(
            f"The budget of {config.budget} has ended the run with {budget.spent:.4f} spent; go on with: --budget MORE"
        )
        return INCOMPLETE
    return INTERRUPTED if run.stopping else 0


def _read_options(argv: Sequence[str]) -> Any:
    parser = ConfigParser(
        prog="lantern label",
        description="Label pairs with any annotating teacher. Every answer is kept in a store at once: the same command "
        "again goes on where it stopped, and asks again only what a kill found in flight. Also: lantern label import, "
        "lantern label purge.",
        usage="lantern label --config FILE [--KEY VALUE ...]",
    )
    restrict_imports()
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML with the keys below")
    parser.add_class_arguments(LabelConfig)
    parser.add_argument("--yes", action="store_true", help="don't ask whether the expected costs are all right")
    parser.add_argument("--retry_quarantined", action="store_true", help="ask again what is in quarantine")
    with explain_all(HOW_TO_ALLOW):
        return parser.instantiate(parser.parse_args(list(argv)))


def _admitted(pairs: Sequence[Pair], store: LabelStore, exclude_flagged: bool, console: Console) -> list[Pair]:
    """The pairs without purged persons and, where wanted, without flagged texts; says how many were left out."""
    kept = [pair for pair in pairs if not was_purged(pair, store)]
    if purged := len(pairs) - len(kept):
        console.print(
            f"{purged} pairs are left out: a job or candidate of theirs was purged. Remove them from the pairs too."
        )
    clean = [pair for pair in kept if not pair_flags(pair)] if exclude_flagged else kept
    if flagged := len(kept) - len(clean):
        console.print(f"{flagged} pairs are left out, whose texts are flagged (exclude_flagged).")
    if not clean:
        raise UserError("No pairs are left to label: all are purged or flagged.")
    return clean


def _run(run: StagedRun | WholeRun, console: Console) -> UserError | None:
    """Run until the end or the first Ctrl-C or SIGTERM, which let what is in flight finish. Returns what has ended the run
    early, so that what was answered is exported all the same."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        run.stopping = True
        console.print("Stopping: what is in flight is waited for. Once more to stop at once.")
        for number, handler in previous.items():
            signal.signal(number, handler)

    in_main_thread = threading.current_thread() is threading.main_thread()
    for number in previous if in_main_thread else ():
        signal.signal(number, stop)
    try:
        with Display(console) as display:
            if run.config.engine == "ray":
                from lantern_pl.labelling.on_ray import run_on_ray

                run_on_ray(run, display.tell)
            elif isinstance(run, StagedRun):
                asyncio.run(run.run(display.tell))
            else:
                run.run(display.tell)
    except UserError as error:
        return error
    finally:
        for number, handler in previous.items() if in_main_thread else ():
            signal.signal(number, handler)
    return None


def _about(run: StagedRun | WholeRun, config: LabelConfig) -> dict[str, Any]:
    """What the manifest says of how the labels came about."""
    about: dict[str, Any] = {
        "teacher": {
            "name": teacher_name(config.teacher),
            "plugin": plugins.origin(config.teacher),
            "cache_key": run.teacher_key,
            "identity": config.teacher.identity(),
        },
        "task": asdict(config.task),
    }
    if isinstance(run, StagedRun):
        about["guide"] = asdict(config.guide)
        about["sampling"] = {"samples": config.samples, "temperature": config.temperature, "seed": config.seed}
    return about


def teacher_name(teacher: Teacher) -> str:
    """What to call a teacher in a column: its model where it has one, its plugin's name or class otherwise."""
    entry = plugins.entry_of(type(teacher))
    name = entry.name if entry else type(teacher).__name__
    model = teacher.identity().get("model")
    return f"{name}:{model}" if isinstance(model, str) else name


def _import(argv: list[str]) -> int:
    from lantern_pl.labelling.importing import import_command

    return import_command(argv)


def _purge(argv: list[str]) -> int:
    from lantern_pl.labelling.purge_command import purge_command

    return purge_command(argv)


OTHERS = {"import": _import, "purge": _purge}
