"""What a label run will take, before its first question: calls, tokens and, where the price is known, money."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.labelling.account import Price, most_prompt_tokens
from lantern_pl.labelling.staged import StagedRun
from lantern_pl.labelling.whole import WholeRun
from lantern_pl.tasks.stage import Stage
from lantern_pl.teachers.chat import ChatRequest

BYTES_PER_TOKEN = 4.0
"""A rule of thumb for English; what a tokenizer makes of a text isn't known for models behind a server."""
USED_SHARE = 0.3
"""How much of `max_tokens` an answer is taken to use, as long as none was seen."""


@dataclass(frozen=True)
class StageForecast:
    """What one stage will take: questions in all, answered already, and tokens of the rest."""

    stage: str
    per: str
    questions: int
    answered: int
    prompt_tokens: float
    most_prompt_tokens: float
    completion_tokens: float
    most_completion_tokens: float


def forecast(run: StagedRun) -> list[StageForecast]:
    """One row a stage. Reads the store, asks nothing. Tokens are estimates; repairs and repeated attempts come on top."""
    rows: list[StageForecast] = []
    lengths: dict[str, float] = {}
    longest: dict[str, int] = {}
    for stage in run.stages:
        seen = [row.completion_tokens for row in run.store.rows(stage.name, "ok")][:1000]
        lengths[stage.name] = sum(seen) / len(seen) if seen else USED_SHARE * stage.max_tokens
        longest[stage.name] = stage.max_tokens
        questions = answered = most = 0
        prompt = 0.0
        for unit, (_, pair) in zip(run.units(stage), _repeated(run, stage), strict=True):
            questions += 1
            if unit is None:
                missing = [name for name in stage.reads if name in lengths]
                texts = {name: getattr(pair, name) for name in stage.reads if name not in lengths}
                request = ChatRequest(run.config.guide.messages(stage, texts | dict.fromkeys(missing, ""), run.levels))
                prompt += _tokens(request) + sum(lengths[name] for name in missing)
                most += most_prompt_tokens(request) + sum(longest[name] for name in missing)
            elif run.is_settled(unit.key):
                answered += 1
            else:
                prompt += _tokens(unit.request)
                most += most_prompt_tokens(unit.request)
        left = questions - answered
        rows.append(
            StageForecast(
                stage.name,
                run.config.guide.subject(stage.name),
                questions,
                answered,
                prompt,
                most,
                left * lengths[stage.name],
                left * stage.max_tokens,
            )
        )
    return rows


def _repeated(run: StagedRun, stage: Stage) -> Iterator[tuple[str, Pair]]:
    """The subjects of a stage, each as often as it's asked about."""
    for subject in run.subjects(stage):
        for _ in range(run.samples(stage)):
            yield subject


def _tokens(request: ChatRequest) -> float:
    schema = len(json.dumps(request.schema)) if request.schema else 0
    return (sum(len(message["content"].encode()) for message in request.messages) + schema) / BYTES_PER_TOKEN


def show(
    rows: Sequence[StageForecast], own: Sequence[ChatRequest], price: Price | None, budget: float | None, console: Console
) -> bool:
    """The forecast as a table, and what it may cost. Whether there is something to ask.

    `own` are the questions that the teacher may ask for itself first.
    """
    table = Table(title="Before the first question")
    for column, justify in (("stage", "left"), ("one per", "left"), ("questions", "right"), ("answered", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("prompt tokens", justify="right")
    table.add_column("answer tokens", justify="right")
    for row in rows:
        cells = (row.questions, row.answered, row.prompt_tokens, row.completion_tokens)
        table.add_row(row.stage, row.per, *(f"{cell:,.0f}" for cell in cells))
    console.print(table)
    left = sum(row.questions - row.answered for row in rows)
    if not left:
        console.print("Nothing is left to ask.")
        return False
    prompt, answers = sum(row.prompt_tokens for row in rows), sum(row.completion_tokens for row in rows)
    most_read = sum(row.most_prompt_tokens for row in rows) + sum(map(most_prompt_tokens, own))
    most = sum(row.most_completion_tokens for row in rows) + sum(request.max_tokens for request in own)
    line = f"{left:,} questions to ask, about {prompt:,.0f} tokens to read and {answers:,.0f} to write."
    if own:
        line += f" The teacher may ask {len(own)} of its own before, to get ready."
    if price is None:
        line += " The teacher's price isn't known, so the cost isn't: it's not nothing."
    else:
        line += f" About {price.of(prompt, answers):,.4f}, at most {price.of(most_read, most):,.4f} without repairs."
    if budget is not None:
        line += f" The run ends before it has spent {budget:,.4f}."
    console.print(line, soft_wrap=True)
    return True


def show_whole(run: WholeRun, console: Console) -> bool:
    """Say what labelling whole pairs takes. Whether that is, or may be, money."""
    left = list(run.unanswered())
    line = f"{len(left):,} of {len(run.pairs):,} pairs to label"
    if run.price is not None and run.price.is_nothing:
        where = "in this process" if run.config.engine == "local" else "by the workers of a Ray cluster"
        console.print(f"{line}, {where}: that costs time and no money.")
        return False
    tokens = sum(map(_tokens, map(run.request, left)))
    line += f", about {tokens:,.0f} tokens to read."
    if run.price is None:
        line += " The teacher's price isn't known, so the cost isn't: it's not nothing."
    elif run.teacher.max_new_tokens is None:
        line += f" About {run.price.of(tokens, 0):,.4f} for reading; what the answers cost isn't known."
    else:
        line += f" At most {sum(map(run.price.most, map(run.request, left))):,.4f}."
    console.print(line, soft_wrap=True)
    return bool(left)


def confirm(yes: bool, budget: float | None) -> bool:
    """Ask whether to go on, unless that was said already. Raises UserError where nobody is there to ask."""
    if yes or budget is not None:
        return True
    if not sys.stdin.isatty():
        raise UserError("Nobody is there to confirm the costs above: give --yes, or a limit by --budget.")
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
