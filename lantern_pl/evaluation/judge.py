"""An LLM says which of two explanations of a pair is better; it's asked in both orders, since judges favour a place.

A teacher with `chat` gets a question with a schema, as `lantern label` asks; one that only annotates gets it as a task of
its own, whose levels are the three verdicts. The rubric's rules can't read a question, and are refused as a judge.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.evaluation.bootstrap import Bootstrap, drawn_of, mean, ratio, units_of
from lantern_pl.evaluation.token_divergence import Bar
from lantern_pl.labelling.answers import BadAnswer, read_answer, repair_messages
from lantern_pl.plugin_checks import ask
from lantern_pl.tasks import Task
from lantern_pl.tasks.guide import Guide, Stage
from lantern_pl.tasks.schema import json_schema, model_of
from lantern_pl.tasks.untrusted import fence
from lantern_pl.teachers.chat import ChatFailed, ChatReply, ChatRequest
from lantern_pl.teachers.contract import Teacher

FIRST, EQUAL, SECOND = "first", "equal", "second"
# What the student gets for its verdicts in the two orders, where these agree.
_SCORES: dict[tuple[str | None, str | None], float] = {(FIRST, SECOND): 1.0, (SECOND, FIRST): 0.0, (EQUAL, EQUAL): 0.5}
REPAIRS = 1
"""How often an answer that can't be read is asked for again."""

_CRITERIA = """\
You compare two explanations of how well a candidate fits a job. The better one is right about the candidate and the job, \
takes up the requirements that matter, and rests on what the texts say; an invented claim or quote counts most against it. \
Length, style and order don't count. Call them equal where neither is better."""
_STAGE = Stage(
    name="compare",
    reads=["job_text", "candidate_text", "first_explanation", "second_explanation"],
    sections=["comparison", "output"],
    ask="Which explanation is better? Give the reason in a sentence or two, then the verdict.",
    output={"reason": "text", "better": f"{FIRST} | {EQUAL} | {SECOND}"},
    max_tokens=384,
)
_GUIDE = Guide(
    sections={
        "comparison": _CRITERIA,
        "output": "- Answer with one JSON object of the form that is asked: nothing before or after it, no code fence.",
    }
)
_TASK = Task(
    levels=[FIRST, EQUAL, SECOND],
    prompt=f"{_CRITERIA}\n\n{{job_text}}\n\n{{candidate_text}}\n\nWhich explanation is better ({{levels}})? Then say why.",
    answer="Better: {level}\n{explanation}",
)


@dataclass(frozen=True)
class Question:
    """Which of two answers to a pair's question is better, in this order."""

    pair: Pair
    first: str
    second: str


def judge(
    teacher: Teacher,
    pairs: Sequence[Pair],
    students: Sequence[str],
    others: Sequence[str],
    against: str,
    bootstrap: Bootstrap,
    bar: Bar,
) -> dict[str, Any]:
    """Verdicts on the student's answers and on `others`, those of the model that `against` names:

    wins: how many pairs each has won in both orders, and ties. A verdict that turns with the order makes a tie, and is
    counted as inconsistent; a pair of which an answer couldn't be read isn't counted. win_rate: the student's wins and half
    of the ties. first_preferred: how often the first place has won, of verdicts that name one; 0.5 without favour.

    Raises UserError where the judge can't be asked at all.
    """
    # Of two equal texts none is better: that needn't be asked.
    differing = [row for row in range(len(pairs)) if students[row] != others[row]]
    questions = [Question(pairs[row], students[row], others[row]) for row in differing]
    turned = [Question(question.pair, question.second, question.first) for question in questions]
    verdicts = _ask(teacher, [*questions, *turned], bar)
    both = list(zip(verdicts[: len(questions)], verdicts[len(questions) :], strict=True))
    scores = np.full(len(pairs), _SCORES[EQUAL, EQUAL])
    scores[differing] = [np.nan if None in orders else _SCORES.get(orders, 0.5) for orders in both]
    firsts = np.array([[{FIRST: 1.0, SECOND: 0.0}.get(verdict or "", np.nan) for verdict in orders] for orders in both])
    named = np.isfinite(firsts.reshape(-1, 2)).sum(1).astype(np.float64)
    shares = ratio(np.nansum(firsts.reshape(-1, 2), 1), named)
    units = units_of(pairs, drawn_of(pairs))
    return {
        "against": against,
        "pairs": len(pairs),
        "wins": {name: int((scores == score).sum()) for name, score in (("student", 1), (against, 0), ("tie", 0.5))},
        "inconsistent": sum(None not in orders and orders not in _SCORES for orders in both),
        "unreadable": int(np.isnan(scores).sum()),
        "win_rate": bootstrap.estimates({"rate": mean(scores)}, units)["rate"].as_json(),
        "first_preferred": bootstrap.estimates({"share": mean(shares, named)}, [units[row] for row in differing])[
            "share"
        ].as_json(),
    }


def _ask(teacher: Teacher, questions: Sequence[Question], bar: Bar) -> list[str | None]:
    """The verdict of each, None where the answer can't be read."""
    if not questions:
        return []
    if "chat" in teacher.capabilities:
        return asyncio.run(_chat(teacher, questions, bar))
    return [_annotated(teacher, question) for question in bar(questions, "judge")]


def _annotated(teacher: Teacher, question: Question) -> str | None:
    pair = question.pair
    shown = replace(
        pair,
        job_text=f"{fence('job', pair.job_text)}\n\n{fence('candidate', pair.candidate_text)}",
        candidate_text=f"{fence('first explanation', question.first)}\n\n{fence('second explanation', question.second)}",
    )
    return ask(teacher, lambda: teacher.annotate([shown], _TASK))[0].level


async def _chat(teacher: Teacher, questions: Sequence[Question], bar: Bar) -> list[str | None]:
    await teacher.get_ready_to_chat()
    slots = asyncio.Semaphore(teacher.max_in_flight)

    async def answer(question: Question) -> str | None:
        async with slots:
            return await _chatted(teacher, question)

    tasks = [asyncio.ensure_future(answer(question)) for question in questions]
    try:
        for task in bar(tasks, "judge"):
            await task
    except ChatFailed as failed:
        raise UserError(f"The judge can't be asked: {failed.reason}") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await teacher.close()
    return [task.result() for task in tasks]


async def _chatted(teacher: Teacher, question: Question) -> str | None:
    """The verdict, asked for once more where it can't be read. Raises ChatFailed where no question would be answered."""
    texts = {"job_text": question.pair.job_text, "candidate_text": question.pair.candidate_text}
    inputs = {**texts, "first_explanation": question.first, "second_explanation": question.second}
    request = ChatRequest(
        messages=_GUIDE.messages(_STAGE, inputs, []),
        schema=json_schema(model_of(_STAGE, [])),
        max_tokens=_STAGE.max_tokens,
    )
    for _ in range(REPAIRS + 1):
        try:
            reply: ChatReply = await teacher.chat(request)
        except ChatFailed as failed:
            if failed.stop:
                raise
            return None
        try:
            return str(read_answer(reply.text, reply.finish_reason, _STAGE, [], inputs, teacher.follows_schema)["better"])
        except BadAnswer as bad:
            said = {"role": "assistant", "content": reply.text}
            request = replace(request, messages=(*request.messages, said, *repair_messages(_STAGE, [], bad.reason)))
    return None
