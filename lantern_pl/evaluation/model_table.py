"""`lantern compare`: teachers and students side by side on the same annotated pairs, in one table."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lantern_pl.config_errors import explain_all
from lantern_pl.config_parser import HOW_TO_ALLOW, ConfigParser, restrict_imports
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.errors import UserError
from lantern_pl.evaluation.asking import explanations_of, level_probs_of, parameters
from lantern_pl.evaluation.explanations import rouge
from lantern_pl.evaluation.levels import annotated_levels, level_values
from lantern_pl.evaluation.token_divergence import Bar, comparable, token_figures
from lantern_pl.model_files import quiet_transformers
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher

Figures = dict[str, float | int | str | None]
_FLOOR = 1e-6
"""A level's probability in a divergence is at least this: an annotator that is sure of itself gives some levels none."""


@dataclass
class CompareConfig:
    """Ask several models about the same annotated pairs, and put their figures into one table."""

    pairs: str
    """Annotated pairs that none of the models was trained on: what counts as right."""
    models: dict[str, Teacher]
    """Name in the table -> teacher: lantern_pl.teachers.hf for decoders, .encoder for encoders, or any other."""
    token_teacher: str | None = None
    """Which of the models the others' next-token distributions are held against; null leaves that column empty."""
    task: Task = field(default_factory=Task)
    """Levels, question and answer."""
    job_text_field: str = "job_text"
    """Which field of the pairs is the job's text: the one that the students were trained on."""
    explain_pairs: int = 16
    """How many of the pairs to have explained, for ROUGE-L and the speed of explaining."""
    max_length: int = 512
    """Longest example in tokens, for the divergence of next tokens."""
    batch_size: int = 8
    """Pairs at once."""
    out: str | None = None
    """File for the figures as JSON, or null."""


def compare_command(argv: list[str]) -> int:
    """Run `lantern compare ...`; `argv` is what follows `compare`. Raises UserError, and SystemExit after help."""
    quiet_transformers()
    config = _read_config(argv)
    console = Console()
    pairs = [pair for pair in read_pairs(config.pairs, config.task, config.job_text_field) if pair.level is not None]
    if not pairs:
        raise UserError(f"{config.pairs} has no annotated pairs: what is right isn't known.")
    if config.token_teacher is not None and config.token_teacher not in config.models:
        raise UserError(f"token_teacher is {config.token_teacher!r}, which isn't one of the models: {list(config.models)}.")
    rows = {name: measure(model, pairs, config, partial(_bar, name)) for name, model in config.models.items()}
    console.print(model_table(rows, len(pairs), min(config.explain_pairs, len(pairs))))
    if config.out:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        about = {"pairs": config.pairs, "job_text_field": config.job_text_field, "count": len(pairs)}
        Path(config.out).write_text(json.dumps({**about, "models": rows}, indent=2) + "\n")
    return 0


def _bar(model: str, rows: Sequence[Any], what: str) -> Any:
    return track(rows, f"{model}: {what}")


def _read_config(argv: Sequence[str]) -> CompareConfig:
    parser = ConfigParser(
        prog="lantern compare", usage="lantern compare --config FILE [--KEY VALUE ...]", description=CompareConfig.__doc__
    )
    restrict_imports()
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML with the keys below")
    parser.add_class_arguments(CompareConfig)
    with explain_all(HOW_TO_ALLOW):
        made = parser.instantiate(parser.parse_args(list(argv)))
    return CompareConfig(**{key.name: made[key.name] for key in fields(CompareConfig)})


def measure(model: Teacher, pairs: Sequence[Pair], config: CompareConfig, bar: Bar) -> Figures:
    """One row of the table.

    Accuracy and quadratic kappa of the levels, KL (nats) of the annotator's level distribution to the model's, ROUGE-L of
    the explanations, KL (nats a token) of the token teacher to the model on the annotated answers, and pairs a second.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    figures: Figures = {"parameters": parameters(model)}
    if "level_probs" in model.capabilities:
        began = time.perf_counter()
        probs = level_probs_of(model, pairs, config.task, config.batch_size, bar)
        figures["levels_per_s"] = len(pairs) / (time.perf_counter() - began)
        figures |= level_figures(probs, pairs, config.task)
    explained = [pair for pair in pairs if pair.explanation][: config.explain_pairs]
    if "annotate" in model.capabilities and explained:
        began = time.perf_counter()
        texts = explanations_of(model, explained, config.task, config.batch_size, bar)
        figures["explanations_per_s"] = len(explained) / (time.perf_counter() - began)
        figures["rouge_l"] = float(rouge(texts, [pair.explanation or "" for pair in explained])["rouge_l"].mean())
    if config.token_teacher is not None:
        teacher = config.models[config.token_teacher].to(device)
        figures["kl_per_token"] = None
        if comparable(teacher, model):
            found = token_figures(model, teacher, explained, config.task, config.max_length, device, bar)
            if found:
                figures["kl_per_token"] = float((found["kl"] * found["tokens"]).sum() / found["tokens"].sum())
    return figures


def level_figures(probs: torch.Tensor, pairs: Sequence[Pair], task: Task) -> Figures:
    """Figures of level distributions [P, K] against the annotations."""
    known = [row for row, pair in enumerate(pairs) if pair.level_probs is not None]
    divergence = None
    if known:
        annotated = torch.tensor([pairs[row].level_probs for row in known], dtype=torch.float64)
        p, q = (x.double().clamp_min(_FLOOR) for x in (annotated, probs[known]))
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        divergence = float((p * (p / q).log()).sum(-1).mean())
    values = level_values(probs, annotated_levels(pairs, task), bins=10)
    return {"accuracy": values["accuracy"], "quadratic_kappa": values["quadratic_kappa"], "kl_of_levels": divergence}


COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("size", lambda value: f"{value / 1e6:.1f}M"),
    "accuracy": ("acc.", "{:.2f}".format),
    "quadratic_kappa": ("kappa", "{:.2f}".format),
    "kl_of_levels": ("KL of levels", "{:.2f}".format),
    "rouge_l": ("ROUGE-L", "{:.2f}".format),
    "kl_per_token": ("KL a token", "{:.2f}".format),
    "levels_per_s": ("levels a second", "{:.1f}".format),
    "explanations_per_s": ("texts a second", "{:.2f}".format),
}


def model_table(rows: Mapping[str, Figures], count: int, explained: int) -> Table:
    """The figures of all models, a row each."""
    table = Table(
        title=f"{count} held-out pairs, {explained} of them explained. kappa: quadratic. KL in nats: of the annotator's "
        "levels, and of the token teacher's next tokens, to the model's.",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    for name, figures in rows.items():
        cells = (("" if figures.get(key) is None else form(figures[key])) for key, (_, form) in COLUMNS.items())
        table.add_row(name, *cells)
    return table
