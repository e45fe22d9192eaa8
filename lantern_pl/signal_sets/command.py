"""`lantern cache`: record what a teacher says about a data set, so that students learn from it without the teacher."""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from lantern_pl import plugins
from lantern_pl.config_errors import explain_all
from lantern_pl.config_parser import HOW_TO_ALLOW, ConfigParser, restrict_imports
from lantern_pl.data.featurize import DecoderFeaturizer, Example
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import fingerprint, read_pairs
from lantern_pl.errors import UserError
from lantern_pl.model_files import quiet_transformers
from lantern_pl.plugin_checks import ask, check_teacher, checked_signal
from lantern_pl.signal_sets import report
from lantern_pl.signal_sets.config import CacheConfig, Kind
from lantern_pl.signal_sets.formats import Format, TopKFormat
from lantern_pl.signal_sets.keys import KEY_BYTES
from lantern_pl.signal_sets.manifest import MANIFEST, UNFINISHED, Manifest, Tokens, read_manifest
from lantern_pl.signal_sets.recording import Item, Recorder, ShardArrays, ThisProcess, plan
from lantern_pl.signal_sets.writer import SetWriter, differences, is_whole, reopen
from lantern_pl.signals import Hidden, Logits, TopK
from lantern_pl.teachers import Teacher
from lantern_pl.teachers.contract import Assignment
from lantern_pl.text import template_hash, vocabulary_size

if TYPE_CHECKING:
    from lantern_pl.signal_sets.on_ray import Workers

MOST_SHARDS = 50_000
"""Linux lets a process map some 65,000 files."""
# Of a pair besides its token signals: its keys, and where its rows and entries end.
_BYTES_PER_PAIR = 2 * KEY_BYTES + 16


def cache_command(argv: list[str]) -> int:
    """Run `lantern cache ...`; `argv` is what follows `cache`. Raises UserError, and SystemExit after help."""
    quiet_transformers()
    config = _read_options(argv)
    console = Console()
    # A job in the background ignores SIGINT unless told otherwise.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, _stop) for number in numbers}
    try:
        _cache(config, console)
    except _Stopped as stopped:
        console.print("Stopped. What is in whole files stays: the same command goes on from there.", soft_wrap=True)
        return 128 + stopped.number
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


class _Stopped(BaseException):
    """A signal asks the run to end. Like KeyboardInterrupt it's no Exception, which a plugin may catch."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _stop(number: int, frame: Any) -> None:
    raise _Stopped(number)


def _read_options(argv: Sequence[str]) -> CacheConfig:
    parser = ConfigParser(
        prog="lantern cache",
        description="Record what a teacher says about pairs: token signals for decoder students, level distributions for "
        "encoder students. `lantern fit` then learns from them by the teacher lantern_pl.teachers.cached. The same command "
        "again goes on where it was interrupted.",
        usage="lantern cache --config FILE [--KEY VALUE ...]",
    )
    restrict_imports()
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML with the keys below")
    parser.add_class_arguments(CacheConfig)
    with explain_all(HOW_TO_ALLOW):
        options = parser.instantiate(parser.parse_args(list(argv)))
    return CacheConfig(**{field.name: options[field.name] for field in fields(CacheConfig)})


def _cache(config: CacheConfig, console: Console) -> None:
    check_teacher(config.teacher)
    read = (read_pairs(path, config.task, config.job_text_field) for path in paths_of(config))
    pairs = [pair for pairs in read for pair in pairs][: config.limit]
    kinds = _kinds(config, pairs, console)
    teacher = config.teacher
    settings = _settings(config, pairs, kinds)
    folder = Path(config.signals)
    finished: Manifest | None = None
    if (folder / MANIFEST).is_file() and not (folder / UNFINISHED).is_file():
        finished = read_manifest(folder)
        _check_same(finished, settings, folder)
        files = [*finished.shards, *([finished.head] if finished.head else [])]
        damaged = [file.file for file in files if not is_whole(folder, file)]
        if not damaged:
            console.print(f"{folder} holds these signals already.", soft_wrap=True)
            return
        named = ", ".join(damaged[:3]) + (", ..." if len(damaged) > 3 else "")
        console.print(f"{folder}: damaged since, and made anew: {named}", soft_wrap=True)
    featurizer, examples = _examples(config, pairs) if "tokens" in kinds else (None, None)
    if config.compare_with is not None and examples is not None:
        report.check_compared(config.compare_with, teacher)
    items = plan(pairs, examples, "levels" in kinds)
    starts = range(0, len(items), config.pairs_per_shard)
    if len(starts) > MOST_SHARDS:
        raise UserError(
            f"{len(items):,} pairs at pairs_per_shard {config.pairs_per_shard} are {len(starts):,} files, and a fit maps "
            f"all of them, at most {MOST_SHARDS:,}: give {-(-len(items) // MOST_SHARDS):,} or more."
        )
    with _engine(config) as engine:
        work = None
        if featurizer is not None and examples is not None:
            template, paths = template_hash(featurizer.tokenizer), ", ".join(paths_of(config))
            work = Assignment("score_tokens", examples, config.task, config.max_length, paths, template)
            if isinstance(engine, ThisProcess):
                _tell(teacher, work)  # rather now than in the middle of the run; each worker of a cluster is told by itself
        tokens, head = _form(config, featurizer, examples, engine)
        if featurizer is not None and examples and teacher.top_k is None:
            settings["request"]["dtype"] = engine.once(partial(_dtype, teacher, featurizer, examples[0]))
        if finished is not None:
            _check_same(finished, settings, folder)
            reopen(folder, finished, settings)
        writer = SetWriter(folder, settings)
        form = tokens.format() if tokens else None
        if head is not None and "head" not in writer.extra:
            writer.add_head(head)
        shards = {number: items[start : start + config.pairs_per_shard] for number, start in enumerate(starts)}
        left = {number: shard for number, shard in shards.items() if number not in writer.done}
        make = partial(
            Recorder, teacher, config.task, featurizer, form, "levels" in kinds, config.seed, config.batch_size
        )  # fmt: skip
        trial = make(engine.device) if isinstance(engine, ThisProcess) else None
        if work is not None and trial is None:
            make = partial(_told, teacher, replace(work, examples=()), make)
        _forecast(form, [item for shard in left.values() for item in shard], trial, config.batch_size, folder, console)
        began = time.perf_counter()
        _record(engine.record(make, left), writer, len(items), len(items) - sum(map(len, left.values())), console)
        seconds = time.perf_counter() - began
        if tokens is not None and tokens.mode == "sampled":
            tokens = tokens.model_copy(update={"widest": _widest(writer)})
        found = None
        if isinstance(form, TopKFormat) and featurizer is not None and examples is not None and config.sample:
            spread = _spread(examples, config.sample)
            found = engine.once(partial(report.measure, teacher, featurizer, form, spread, config.compare_with))
    manifest = Manifest(
        **{name: settings[name] for name in ("teacher", "task", "request")},
        data={"paths": paths_of(config), **settings["data"]},
        tokens=tokens,
        levels=list(config.task.levels) if "levels" in kinds else None,
        head=writer.extra.get("head"),
        shards=writer.shards,
        report=found,
    )
    writer.finish(manifest)
    _show(manifest, folder, seconds, console)


@contextmanager
def _engine(config: CacheConfig) -> "Iterator[ThisProcess | Workers]":
    if config.engine == "local":
        yield ThisProcess(config.teacher)
        return
    from lantern_pl.scale.cluster import connected
    from lantern_pl.signal_sets.on_ray import Workers

    with connected(config.ray) as cluster:
        yield Workers(config.teacher, cluster)


def paths_of(config: CacheConfig) -> list[str]:
    return [config.pairs] if isinstance(config.pairs, str) else config.pairs


def _record(
    made: Iterable[tuple[int, int, ShardArrays | None]], writer: SetWriter, total: int, done: int, console: Console
) -> None:
    """Write each shard as soon as it is whole."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=60) as progress:
        task = progress.add_task("Recording pairs", total=total, completed=done)
        for number, count, shard in made:
            if shard is not None:
                writer.add(number, shard.arrays, shard.examples, shard.tokens, shard.pairs)
            progress.advance(task, count)


def _kinds(config: CacheConfig, pairs: Sequence[Pair], console: Console) -> list[Kind]:
    able: dict[Kind, str] = {"tokens": "score_tokens", "levels": "level_probs"}
    can: list[Kind] = [kind for kind, capability in able.items() if capability in config.teacher.capabilities]
    if lacking := [kind for kind in config.kinds or [] if kind not in can]:
        raise UserError(
            f"kinds has {lacking[0]}, which the teacher {type(config.teacher).__name__} can't tell; it can: "
            f"{', '.join(sorted(config.teacher.capabilities))}."
        )
    kinds = config.kinds or can
    if not kinds:
        raise UserError(
            f"The teacher {type(config.teacher).__name__} neither scores tokens nor gives level distributions (it can: "
            f"{', '.join(sorted(config.teacher.capabilities))}): nothing to record. lantern_pl.teachers.hf can both."
        )
    bare = sum(pair.level is None or not pair.explanation for pair in pairs)
    if config.kinds is None and bare and kinds == ["tokens", "levels"]:
        if bare < len(pairs):
            raise UserError(
                f"{bare} of {len(pairs)} pairs have no level or no explanation, so their tokens can't be scored: annotate "
                "them (`lantern label`), leave them out, or give kinds: [levels]."
            )
        console.print("The pairs have no levels or no explanations, so only levels are recorded.", soft_wrap=True)
        return ["levels"]
    return kinds


def _settings(config: CacheConfig, pairs: Sequence[Pair], kinds: Sequence[Kind]) -> dict[str, Any]:
    """All that the signals depend on."""
    teacher = config.teacher
    request: dict[str, Any] = {"kinds": sorted(kinds), "pairs_per_shard": config.pairs_per_shard}
    if "tokens" in kinds:
        names = {
            "top_k": ("k", "log_probs", "packed", "temperature"),
            "sampled": ("rounds", "packed", "temperature", "seed"),
            "hidden": (),
        }[config.mode]
        request |= {"mode": config.mode, **{name: getattr(config, name) for name in names}}
    return {
        "teacher": {"class": plugins.origin(teacher), "cache_key": teacher.cache_key(), **teacher.identity()},
        "task": asdict(config.task),
        "data": {
            "pairs": len(pairs),
            "sha256": fingerprint(pairs),
            "job_text_field": config.job_text_field,
            "max_length": config.max_length,
        },
        "request": request,
    }


def _check_same(manifest: Manifest, settings: dict[str, Any], folder: Path) -> None:
    there = {name: getattr(manifest, name) for name in settings}
    there["data"] = {name: value for name, value in manifest.data.items() if name != "paths"}
    # What the teacher computes in is known once it's loaded, which a finished set doesn't need.
    asked = settings["request"]
    there["request"] = {name: value for name, value in manifest.request.items() if name != "dtype" or name in asked}
    if different := differences(there, settings):
        raise UserError(
            f"signals is {str(folder)!r}, a signal set that was made otherwise: {'; '.join(different)}. Choose another "
            "folder, or delete that one."
        )


def _examples(config: CacheConfig, pairs: Sequence[Pair]) -> tuple[DecoderFeaturizer, list[Example]]:
    tokenizer = config.teacher.tokenizer
    if tokenizer is None:
        raise UserError(
            f"The teacher {type(config.teacher).__name__} has no tokenizer, so its token signals can't be recorded: give "
            "kinds: [levels], or another teacher."
        )
    featurizer = DecoderFeaturizer(tokenizer, config.task, config.max_length)
    rows = track(pairs, "Tokenizing") if len(pairs) > 2000 else pairs
    return featurizer, [featurizer.encode(pair) for pair in rows]


def _tell(teacher: Teacher, work: Assignment) -> None:
    """Say what the teacher will be asked. Raises its UserError for what it can't tell."""
    ask(teacher, partial(teacher.accept, work))


def _told(teacher: Teacher, work: Assignment, make: Callable[[torch.device], Recorder], device: torch.device) -> Recorder:
    _tell(teacher, work)
    return make(device)


def _form(
    config: CacheConfig,
    featurizer: DecoderFeaturizer | None,
    examples: Sequence[Example] | None,
    engine: "ThisProcess | Workers",
) -> tuple[Tokens | None, dict[str, torch.Tensor] | None]:
    """What the manifest says of token signals, and the output head where that is stored too."""
    teacher = config.teacher
    if featurizer is None or not examples:
        return None, None
    vocabulary = teacher.vocab_size or 0
    about: dict[str, Any] = {
        "mode": config.mode,
        "temperature": config.temperature,
        "vocab_size": vocabulary,
        "tokenizer": teacher.tokenizer_fingerprint,
        "chat_template": template_hash(featurizer.tokenizer),
    }
    if config.mode == "hidden":
        more, arrays = engine.once(partial(_hidden, teacher, featurizer, examples[0]))
        return Tokens(**about, **more), arrays
    if teacher.top_k is not None:
        _check_top_k_teacher(config)
    # Rows of a padded embedding are no tokens, and students of the same tokenizer may have fewer of them.
    about["vocab_size"] = vocabulary = min(vocabulary, vocabulary_size(featurizer.tokenizer))
    if config.mode == "top_k":
        if config.k > vocabulary:
            raise UserError(f"k is {config.k}, and the teacher's vocabulary has {vocabulary} tokens: give a smaller one.")
        return Tokens(**about, k=config.k, log_probs=config.log_probs, packed=config.packed), None
    return Tokens(**about, rounds=config.rounds, packed=config.packed), None


def _dtype(teacher: Teacher, featurizer: DecoderFeaturizer, example: Example, device: torch.device) -> str:
    """What the teacher computes in, which its dtype `auto` leaves to the device: no set is of two precisions."""
    signal = _signal(teacher, featurizer, example, device)
    scores = (
        signal.hidden if isinstance(signal, Hidden) else signal.logits if isinstance(signal, Logits) else signal.log_probs
    )
    return str(scores.dtype).removeprefix("torch.")


def _signal(
    teacher: Teacher, featurizer: DecoderFeaturizer, example: Example, device: torch.device
) -> Hidden | Logits | TopK:
    batch = featurizer.collate([example])
    return checked_signal(teacher, batch.to(device).tokens, len(batch.targets), look_at_values=True)


def _hidden(
    teacher: Teacher, featurizer: DecoderFeaturizer, example: Example, device: torch.device
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the manifest says of hidden states, and the output head."""
    signal = _signal(teacher, featurizer, example, device)
    if not isinstance(signal, Hidden):
        raise UserError(f"The teacher {type(teacher).__name__} gives no hidden states: use mode top_k.")
    head = signal.head
    dtype = str(signal.hidden.dtype).removeprefix("torch.")
    arrays = {"weight": head.weight.cpu(), **({} if head.bias is None else {"bias": head.bias.cpu()})}
    return {"width": signal.hidden.shape[1], "dtype": dtype, "softcap": head.softcap, "scale": head.scale}, arrays


def _check_top_k_teacher(config: CacheConfig) -> None:
    teacher = config.teacher
    assert teacher.top_k is not None
    who = f"The teacher {type(teacher).__name__} names only the {teacher.top_k} most probable tokens"
    if config.mode != "top_k":
        raise UserError(f"{who}: use mode top_k.")
    if teacher.sampled:
        raise UserError(
            f"The tokens of the teacher {type(teacher).__name__} are draws, which aren't the most probable ones."
        )
    if config.k > teacher.top_k:
        raise UserError(f"{who}, and k is {config.k}: give {teacher.top_k} or less, or let the teacher name more.")
    if config.temperature != teacher.temperature:
        raise UserError(
            f"{who}, at temperature {teacher.temperature}, and temperature is {config.temperature}: give that one."
        )


def _forecast(
    form: Format | None, items: Sequence[Item], recorder: Recorder | None, batch_size: int, folder: Path, console: Console
) -> None:
    """Say how much there is to do and what it takes. Raises UserError where the disk has no room for it."""
    tokens = sum(len(item.example.input_ids) - item.example.answer_start for item in items if item.example)
    read = sum(item.length for item in items)
    size = tokens * (form.bytes_per_token() if form else 0) + len(items) * _BYTES_PER_PAIR
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(f"The signals take about {_size(size)}, and {folder} has {_size(free)} free.")
    line = f"{len(items):,} pairs to ask about, {tokens:,} supervised tokens: about {_size(size)}"
    # One batch is asked twice, to know how long all take; of few, and of several workers, the bar tells soon enough.
    if recorder is not None and len(trial := items[:batch_size]) * 4 < len(items):
        began = time.perf_counter()
        for _ in recorder.shard(trial):
            pass
        seconds = (time.perf_counter() - began) * read / sum(item.length for item in trial)
        line += f", and {seconds / 60:.1f} minutes by the first batch" if seconds > 60 else f", and {seconds:.0f} seconds"
    console.print(f"{line}.", soft_wrap=True, highlight=False)


def _widest(writer: SetWriter) -> int:
    from safetensors.torch import load_file

    counts = [load_file(writer.folder / shard.file)["entries"] for shard in writer.shards]
    return max((int(count.max()) for count in counts if len(count)), default=1)


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Some of the examples, from all parts of the data."""
    step = max(1, len(examples) // count)
    return list(examples[::step][:count])


def _show(manifest: Manifest, folder: Path, seconds: float, console: Console) -> None:
    size = sum(shard.bytes for shard in manifest.shards)
    per_token = f", {size / manifest.token_count:.1f} B a token" if manifest.token_count else ""
    console.print(
        f"{manifest.examples:,} examples with {manifest.token_count:,} supervised tokens and {manifest.pairs:,} level "
        f"distributions in {folder}: {_size(size)}{per_token}, in {seconds:.0f} s.",
        soft_wrap=True,
        highlight=False,
    )
    if manifest.report is not None:
        report.show(manifest.report, console)


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
