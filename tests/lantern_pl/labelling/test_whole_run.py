"""Whole pairs by a teacher that isn't asked in stages: what is no label, and what it costs."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from support import Ran

from lantern_pl.data.pair import Pair
from lantern_pl.data.sample import make_pairs
from lantern_pl.errors import UserError
from lantern_pl.labelling.account import Budget, Price
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.labels import Label, NoLabel
from lantern_pl.labelling.store import LabelStore
from lantern_pl.labelling.whole import WholeRun
from lantern_pl.signals import Annotation, LevelProbs
from lantern_pl.tasks import Task
from lantern_pl.tasks.rubric import Rubric
from lantern_pl.teachers import Teacher

COUNT = 300
PAIRS = [
    Pair(row["pair_id"], row["job_id"], row["candidate_id"], row["job_text"], row["candidate_text"])
    for row in make_pairs(COUNT, seed=3)
]
Spoil = Callable[[Random, Annotation, Pair], Annotation]


@dataclass
class Writer(Teacher):
    """Writes what the rubric says, spoilt."""

    lantern_api = 1
    capabilities = frozenset({"annotate"})
    spoil: Spoil = lambda rng, said, pair: said
    price: tuple[float, float] | None = None
    max_new_tokens: int | None = 50
    asked: list[Pair] = field(default_factory=list)

    def identity(self) -> dict[str, Any]:
        return {"rubric": "spoilt"}

    def annotate(self, pairs: Any, task: Task) -> list[Annotation]:
        self.asked += pairs
        found = []
        for pair in pairs:
            said = Rubric().judge(pair.job_text, pair.candidate_text, task.levels)
            items = [
                {"requirement": v.requirement.name, "kind": "must", "verdict": "met", "evidence": v.evidence or ""}
                for v in said.verdicts
            ]
            answer = Annotation(
                said.explanation,
                said.level,
                said.explanation,
                prompt_tokens=200,
                completion_tokens=40,
                requirements=tuple(items),
            )
            found.append(self.spoil(Random(pair.pair_id), answer, pair))
        return found


class PricedWriter(Writer):
    """As a config names it."""

    def __init__(self) -> None:
        super().__init__(price=(10.0, 10.0))


class UnknownWriter(Writer):
    def __init__(self) -> None:
        super().__init__()


def whole(folder: Path, store: LabelStore, teacher: Teacher, budget: float | None = None, **keys: Any) -> WholeRun:
    price = Price(*teacher.price) if teacher.price else None
    config = LabelConfig(str(folder), "", teacher, batch_size=100, **keys)
    return WholeRun(config, PAIRS, store, Budget(budget, price))


def inserted(rng: Random, text: str, what: str) -> str:
    place = rng.randint(1, len(text) - 1)
    return text[:place] + what + text[place:]


def explained(said: str) -> Spoil:
    return lambda rng, answer, pair: replace(answer, explanation=said)


def hidden(rng: Random, answer: Annotation, pair: Pair) -> Annotation:
    return replace(
        answer, explanation=inserted(rng, answer.explanation or "", rng.choice("\u202e\u200b\u2066\U000e0041\ufeff"))
    )


def hidden_requirement(rng: Random, answer: Annotation, pair: Pair) -> Annotation:
    item = {"requirement": inserted(rng, "Python", "\u200b"), "kind": "must", "verdict": "unmet", "evidence": ""}
    return replace(answer, requirements=(*answer.requirements, item))


def refused(rng: Random, answer: Annotation, pair: Pair) -> Annotation:
    said = rng.choice(
        ["I'm sorry, but I can't help with that.", "I'm afraid I can't do that.", "As an AI, I don't judge people."]
    )
    return replace(answer, explanation=said)


def refused_requirement(rng: Random, answer: Annotation, pair: Pair) -> Annotation:
    item = {"requirement": "I cannot comply with this.", "kind": "must", "verdict": "unmet", "evidence": ""}
    return replace(answer, requirements=(item,))


def invented(rng: Random, answer: Annotation, pair: Pair) -> Annotation:
    return replace(
        answer, explanation=f'{answer.explanation} Says "nine years of {rng.choice(["COBOL", "sailing"])} at sea".'
    )


def invented_evidence(rng: Random, answer: Annotation, pair: Pair) -> Annotation:
    item = {"requirement": "Sailing", "kind": "must", "verdict": "met", "evidence": "nine years at sea"}
    return replace(answer, requirements=(*answer.requirements, item))


def blank(rng: Random, answer: Annotation, pair: Pair) -> Annotation:
    return replace(answer, explanation=rng.choice(["...", "—", "?!", " . "]))


KINDS: dict[str, tuple[Spoil, str]] = {
    "hidden characters": (hidden, "hidden characters"),
    "hidden characters in a requirement": (hidden_requirement, "hidden characters"),
    "refusal": (refused, "refused"),
    "refusal as a requirement": (refused_requirement, "refused"),
    "invented quote": (invented, "evidence isn't in the text"),
    "invented evidence": (invented_evidence, "evidence isn't in the text"),
    "nothing but signs": (blank, "blank text"),
    "no explanation": (explained(" "), "no explanation"),
    "cut off": (lambda rng, answer, pair: replace(answer, finish_reason="length"), "truncated"),
    "other level": (lambda rng, answer, pair: replace(answer, level=rng.choice(["High", "", "great"])), "wrong format"),
    "no level": (lambda rng, answer, pair: replace(answer, level=None), "wrong format"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_malformed_answer_is_admitted(kind: str, tmp_path: Path) -> None:
    spoil, reason = KINDS[kind]
    with LabelStore(tmp_path / "labels") as store:
        run = whole(tmp_path, store, Writer(spoil))
        run.run(lambda stage, tally: None)
        assert {run.label(pair) for pair in PAIRS} == {NoLabel(f"annotate: {reason}")}
        assert run.tallies["annotate"].quarantined == {reason: COUNT}


def test_small_models_may_misquote_where_that_is_wanted(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store:
        run = whole(tmp_path, store, Writer(invented), verbatim_quotes=False)
        run.run(lambda stage, tally: None)
        assert all(isinstance(run.label(pair), Label) for pair in PAIRS)


def test_good_answers_are_admitted_and_cost_what_their_tokens_do(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store:
        run = whole(tmp_path, store, Writer(price=(10.0, 20.0)))
        run.run(lambda stage, tally: None)
        assert all(isinstance(run.label(pair), Label) for pair in PAIRS)
        cost = (200 * 10 + 40 * 20) / 1e6
        assert run.tallies["annotate"].cost == pytest.approx(COUNT * cost)
        assert store.totals().cost == pytest.approx(COUNT * cost)


def test_an_unknown_cost_is_not_nothing(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store:
        run = whole(tmp_path, store, Writer())
        run.run(lambda stage, tally: None)
        assert run.tallies["annotate"].cost is None
        assert (store.totals().cost, store.totals().unpriced) == (None, COUNT)


@pytest.mark.parametrize("told", [True, False])
def test_a_budget_is_never_passed_and_is_used_up(told: bool, tmp_path: Path) -> None:
    """Also where answers come without their tokens."""
    silent: Spoil = lambda rng, said, pair: replace(said, prompt_tokens=0, completion_tokens=0)  # noqa: E731
    teacher = Writer(*([] if told else [silent]), price=(10.0, 10.0))
    with LabelStore(tmp_path / "labels") as store:
        run = whole(tmp_path, store, teacher, budget=0.2)
        run.run(lambda stage, tally: None)
        assert run.ended_by_budget
        assert 0.15 < run.budget.spent <= 0.2
        assert 0 < len(teacher.asked) < COUNT
        asked = len(teacher.asked)
        again = whole(tmp_path, store, teacher, budget=100.0)
        again.run(lambda stage, tally: None)
        assert not again.ended_by_budget
        assert len(teacher.asked) == COUNT > asked


@pytest.mark.parametrize("probs", [(3.0, -1.0, -1.0), (float("nan"), 0.5, 0.5), (0.2, 0.2, 0.2)], ids=str)
def test_what_is_no_distribution_is_no_label(probs: tuple[float, ...], tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store:
        run = whole(tmp_path, store, Writer(spoil=lambda rng, said, pair: replace(said, level_probs=probs)))
        run.run(lambda stage, tally: None)
        assert run.label(PAIRS[0]) == NoLabel("annotate: wrong probabilities")

        class Levels(Writer):
            capabilities = frozenset({"level_probs"})

            def level_probs(self, pairs: Any, task: Task) -> LevelProbs:
                return LevelProbs(torch.tensor([probs] * len(pairs)))

        with pytest.raises(UserError, match="expected probabilities that sum to 1"):
            whole(tmp_path, store, Levels(), explain=False).run(lambda stage, tally: None)


def test_what_a_plugin_raises_is_said_without_its_words(tmp_path: Path) -> None:
    def spoil(rng: Random, said: Annotation, pair: Pair) -> Annotation:
        raise ValueError(f"can't read {pair.candidate_text}")

    with LabelStore(tmp_path / "labels") as store, pytest.raises(UserError) as caught:
        whole(tmp_path, store, Writer(spoil=spoil)).run(lambda stage, tally: None)
    assert re.search(r"Writer fails: ValueError at test_whole_run\.py:\d+", str(caught.value))
    assert not any(pair.candidate_text in str(caught.value) for pair in PAIRS)


def test_a_budget_needs_the_length_of_answers(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store, pytest.raises(UserError, match="how long its answers may be"):
        whole(tmp_path, store, Writer(price=(1.0, 1.0), max_new_tokens=None), budget=1.0)


@pytest.mark.parametrize(
    ("keys", "name"), [({"samples": 5, "temperature": 0.7}, "samples"), ({"temperature": 0.7}, "temperature")]
)
def test_what_it_has_no_use_for_is_refused(keys: dict[str, Any], name: str, tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels") as store, pytest.raises(UserError, match=f"{name} is .* leave {name} out"):
        whole(tmp_path, store, Writer(), **keys)


@pytest.mark.parametrize(("name", "said"), [("PricedWriter", "At most 0.0"), ("UnknownWriter", "it's not nothing")])
def test_what_may_cost_money_is_confirmed_first(
    name: str, said: str, tmp_path: Path, pairs_file: Path, lantern: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", "test_whole_run")
    command = ["label", f"--labels={tmp_path / 'labels'}", f"--pairs={pairs_file}", f"--teacher=test_whole_run.{name}"]
    unattended = lantern(*command, "--limit=10")
    assert unattended.code == 2
    assert "give --yes, or a limit by --budget" in unattended.err
    assert said in unattended.out
    assert "no money" not in unattended.out
    agreed = lantern(*command, "--limit=10", "--yes")
    assert agreed.code == 0, agreed.err
    if name == "PricedWriter":
        short = lantern(*command, "--budget=0.03")
        assert short.code == 3
        report = json.loads((tmp_path / "labels" / "report.json").read_text())
        assert 0 < report["stages"]["annotate"]["cost"] <= 0.03


def test_a_refusal_is_not_imported(lantern: Callable[..., Ran], tmp_path: Path) -> None:
    said = ["I'm sorry, but I can't help with that.", "Fits\u200b well.", "...", 'Says "ten years at sea".', "Fits well."]
    rows = [
        {"job_text": "A job.", "candidate_text": f"P {at}", "level": "low", "explanation": e} for at, e in enumerate(said)
    ]
    (tmp_path / "bought.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = lantern("label", "import", tmp_path / "bought.jsonl", "--labels", tmp_path / "labels", "--teacher", "them")
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "labels" / "report.json").read_text())
    assert report["labelled"] == 1
    reasons = ("refused", "hidden characters", "blank text", "evidence isn't in the text")
    assert report["without_label"] == {f"import: {reason}": 1 for reason in reasons}
