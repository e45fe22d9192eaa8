"""Labels whole pairs with a teacher that isn't asked in stages: rules, or a model in this process."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.labelling.account import Budget, Price, Tally
from lantern_pl.labelling.answers import TRUNCATED, BadAnswer, check_quotes, check_text
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.labels import NOT_ASKED, Label, NoLabel, majority
from lantern_pl.labelling.store import Answered, LabelStore
from lantern_pl.plugin_checks import ask, checked_level_probs, wrong_level_probs
from lantern_pl.signals import Annotation
from lantern_pl.teachers.chat import ChatReply, ChatRequest

ANNOTATE, LEVELS = "annotate", "level_probs"
"""The names under which such answers are kept, and what the teacher is asked for."""


class PairAsker:
    """Asks about whole pairs.

    Args:
        config: whom, and about which task.
        stage: ANNOTATE or LEVELS.
    """

    def __init__(self, config: LabelConfig, stage: str) -> None:
        self.teacher = config.teacher
        self.teacher_key = config.teacher.cache_key()
        self.task = config.task
        self.stage = stage
        self.price = None if self.teacher.price is None else Price(*self.teacher.price)
        self._verbatim_quotes = config.verbatim_quotes
        self._task = json.dumps(asdict(config.task), sort_keys=True)

    def key(self, pair: Pair) -> str:
        """sha256 of teacher, task and pair: alike texts of two persons are two questions, forgotten each with its person."""
        canonical = [self.teacher_key, self.stage, self._task, pair.pair_id, pair.job_text, pair.candidate_text]
        return hashlib.sha256(json.dumps(canonical).encode()).hexdigest()

    def get_ready(self) -> None:
        """Load the teacher."""
        self.teacher.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def rows(self, batch: Sequence[Pair]) -> list[Answered]:
        """What the teacher says about some pairs, for the store."""
        began = time.perf_counter()
        answers = self._ask(batch)
        seconds = (time.perf_counter() - began) / len(batch)
        return [self._row(pair, answer, seconds) for pair, answer in zip(batch, answers, strict=True)]

    def _ask(self, batch: Sequence[Pair]) -> list[Annotation]:
        if self.stage == ANNOTATE:
            return ask(self.teacher, lambda: self.teacher.annotate(batch, self.task))
        levels = self.task.levels
        rows = checked_level_probs(self.teacher, batch, self.task).tolist()
        return [Annotation(text="", level=majority(levels, row), explanation=None, level_probs=tuple(row)) for row in rows]

    def _row(self, pair: Pair, answer: Annotation, seconds: float) -> Answered:
        reason = self._fault(pair, answer)
        parsed: dict[str, Any] = {
            "level": answer.level,
            "explanation": answer.explanation,
            "votes": answer.level_probs,
            "requirements": list(answer.requirements),
        }
        cost = None if self.price is None else self.price.of_answer(answer.prompt_tokens, answer.completion_tokens)
        return Answered(
            key=self.key(pair),
            stage=self.stage,
            subject=pair.pair_id,
            job_id=pair.job_id,
            candidate_id=pair.candidate_id,
            pair_id=pair.pair_id,
            sample=0,
            state="ok" if reason is None else "quarantined",
            reason=reason,
            raw=answer.text,
            parsed=parsed if reason is None else None,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cost=cost,
            repairs=0,
            teacher=self.teacher_key,
            seconds=seconds,
        )

    def _fault(self, pair: Pair, answer: Annotation) -> str | None:
        """Why an answer is no label, if it isn't."""
        if answer.finish_reason == "length":
            return TRUNCATED
        if answer.level is None or answer.level not in self.task.levels:
            return "wrong format"
        if self.stage == LEVELS:
            return None
        if answer.level_probs is not None and wrong_level_probs(torch.tensor(answer.level_probs)[None]).any():
            return "wrong probabilities"
        if not (answer.explanation or "").strip():
            return "no explanation"
        texts = {"candidate_text": pair.candidate_text, "job_text": pair.job_text}
        try:
            for item in answer.requirements:
                check_text(item["requirement"], texts)
            check_quotes((("candidate_text", item["evidence"]) for item in answer.requirements if item["evidence"]), texts)
            wordings = "\n".join(item["requirement"] for item in answer.requirements)
            shown = {**texts, "requirements": wordings} if self._verbatim_quotes else None
            check_text(answer.explanation or "", shown)
        except BadAnswer as bad:
            return bad.reason
        return None


class WholeRun:
    """Labels pairs by `annotate`, or by `level_probs` where no explanation is wanted.

    Args:
        config: what to do.
        pairs: about whom.
        store: what was answered before, and where answers go.
        budget: what may be spent.
        retry_quarantined: whether to ask again what is in quarantine.

    Raises UserError for a teacher that can't do it, and for settings that it has no use for.
    """

    def __init__(
        self, config: LabelConfig, pairs: Sequence[Pair], store: LabelStore, budget: Budget, retry_quarantined: bool = False
    ) -> None:
        self.config = config
        self.pairs = pairs
        self.store = store
        self.retry_quarantined = retry_quarantined
        self.teacher = config.teacher
        self.teacher_key = config.teacher.cache_key()
        self.stage = ANNOTATE if config.explain else LEVELS
        if self.stage not in self.teacher.capabilities:
            able = ", ".join(sorted(self.teacher.capabilities)) or "nothing"
            raise UserError(
                f"The teacher {type(self.teacher).__name__} can't {self.stage}; it can: {able}. "
                + ("Choose another teacher." if config.explain else "Set explain: true, or choose another teacher.")
            )
        for name, value in (("samples", config.samples != 1), ("temperature", config.temperature != 0)):
            if value:
                raise UserError(
                    f"{name} is {getattr(config, name)}, but {type(self.teacher).__name__} is asked once about each whole "
                    f"pair, in its own way: leave {name} out. Samples are of teachers that chat, with explain: true."
                )
        self.budget = budget
        self.asker = PairAsker(config, self.stage)
        self.price = self.asker.price
        if budget.limit is not None and self.price and not self.price.is_nothing and self.teacher.max_new_tokens is None:
            raise UserError(
                f"budget is {budget.limit}, but {type(self.teacher).__name__} doesn't say how long its answers may be "
                "(max_new_tokens), so that nobody knows what the next one can cost: leave the budget out."
            )
        self.ended_by_budget = False
        self.tallies = {self.stage: Tally(total=len(pairs))}
        self.stopping = False
        self._waiting: list[Pair] = []
        self._under_way = 0
        self._set_aside = 0.0

    def key(self, pair: Pair) -> str:
        return self.asker.key(pair)

    def unanswered(self) -> Iterator[Pair]:
        """The pairs that are to be asked about."""
        return (pair for pair in self.pairs if not self._settled(self.store.get(self.key(pair))))

    def request(self, pair: Pair) -> ChatRequest:
        """What the teacher is asked about a pair, as far as its cost goes."""
        prompt = self.config.task.render_prompt(pair.job_text, pair.candidate_text)
        return ChatRequest(({"role": "user", "content": prompt},), max_tokens=self.teacher.max_new_tokens or 0)

    def _settled(self, row: Answered | None) -> bool:
        return row is not None and (row.state == "ok" or not self.retry_quarantined)

    def run(self, tell: Callable[[str, Tally], None]) -> None:
        """Ask what isn't answered yet, batch by batch; `tell` hears of each. Ends early once `stopping` is set."""
        tally = self.begin()
        tell(self.stage, tally)
        if self._waiting:
            self.asker.get_ready()
        while batch := self.next_batch():
            self.keep(self.asker.rows(batch), batch, tally)
            tell(self.stage, tally)

    # What whoever asks tells the run

    def begin(self) -> Tally:
        """The tally, in which the pairs that aren't to be asked about are counted."""
        tally = self.tallies[self.stage]
        for pair in self.pairs:
            row = self.store.get(self.key(pair))
            if self._settled(row):
                tally.cached += 1
                if row is not None and row.state == "quarantined":
                    tally.quarantined[row.reason or ""] += 1
            else:
                self._waiting.append(pair)
        # Texts of like length share a batch: less padding to compute.
        self._waiting.sort(key=lambda pair: len(pair.job_text) + len(pair.candidate_text))
        return tally

    def next_batch(self) -> list[Pair] | None:
        """The next pairs to ask about, as many as can be paid for whatever the answers; what they can cost is set aside.

        None where there are no more, or where none can be paid for before others are answered.
        """
        if self.stopping or not self._waiting:
            return None
        batch = self._affordable(self._waiting[: self.config.batch_size])
        if not batch:
            if not self._under_way:
                self.ended_by_budget = self.stopping = True
            return None
        del self._waiting[: len(batch)]
        self._under_way += 1
        self._set_aside += self._most(batch)
        return batch

    def keep(self, rows: Sequence[Answered], batch: Sequence[Pair], tally: Tally) -> None:
        """Put the answers about a batch into the store, and count them once they are there."""
        for future in [self.store.put(row, ()) for row in rows]:
            future.result()
        self._under_way -= 1
        self._set_aside = self._set_aside - self._most(batch) if self._under_way else 0.0
        for row, pair in zip(rows, batch, strict=True):
            if self.price is not None:
                self.budget.spent += self._most([pair]) if row.cost is None else row.cost
            tally.add(ChatReply(row.raw, row.finish_reason, row.prompt_tokens, row.completion_tokens, row.cost))
            if row.reason is not None:
                tally.quarantined[row.reason] += 1
        tally.asked += len(rows)

    def _most(self, batch: Sequence[Pair]) -> float:
        """The highest cost that answers about these pairs can have."""
        if self.price is None or self.price.is_nothing:
            return 0.0
        return sum(self.price.most(self.request(pair)) * self.teacher.most_billed for pair in batch)

    def _affordable(self, batch: list[Pair]) -> list[Pair]:
        """The first pairs of a batch, as many as can be paid for whatever the answers."""
        if self.budget.limit is None:
            return batch
        left = self.budget.limit - self.budget.spent - self._set_aside
        for count, pair in enumerate(batch):
            left -= self._most([pair])
            if left < 0:
                return batch[:count]
        return batch

    def label(self, pair: Pair) -> Label | NoLabel:
        """What the teacher has said about a pair."""
        row = self.store.get(self.key(pair))
        if row is None:
            return NOT_ASKED
        if row.parsed is None:
            return NoLabel(f"{self.stage}: {row.reason}")
        votes = row.parsed["votes"]
        requirements = row.parsed["requirements"]
        return Label(
            level=row.parsed["level"],
            explanation=row.parsed["explanation"],
            votes=None if votes is None else tuple(votes),
            confidence=None if votes is None else max(votes),
            requirements=requirements,
            reduced_job_text="\n".join(_line(item) for item in requirements) or None,
        )


def _line(item: dict[str, str]) -> str:
    return f"- {item['requirement']}" + (f" ({item['kind']})" if item.get("kind") else "")
