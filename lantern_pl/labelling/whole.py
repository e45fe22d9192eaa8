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
from lantern_pl.labelling.account import Tally
from lantern_pl.labelling.answers import TRUNCATED, BadAnswer, check_quotes
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.labels import NOT_ASKED, Label, NoLabel, majority
from lantern_pl.labelling.store import Answered, LabelStore
from lantern_pl.signals import Annotation
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher

ANNOTATE, LEVELS = "annotate", "level_probs"
"""The names under which such answers are kept, and what the teacher is asked for."""


class PairAsker:
    """Asks about whole pairs.

    Args:
        teacher: whom.
        task: the question.
        stage: ANNOTATE or LEVELS.
    """

    def __init__(self, teacher: Teacher, task: Task, stage: str) -> None:
        self.teacher = teacher
        self.teacher_key = teacher.cache_key()
        self.task = task
        self.stage = stage
        self._task = json.dumps(asdict(task), sort_keys=True)

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
            return self.teacher.annotate(batch, self.task)
        levels = self.task.levels
        rows = self.teacher.level_probs(batch, self.task).probs.tolist()
        return [Annotation(text="", level=majority(levels, row), explanation=None, level_probs=tuple(row)) for row in rows]

    def _row(self, pair: Pair, answer: Annotation, seconds: float) -> Answered:
        reason = self._fault(pair, answer)
        parsed: dict[str, Any] = {
            "level": answer.level,
            "explanation": answer.explanation,
            "votes": answer.level_probs,
            "requirements": list(answer.requirements),
        }
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
            cost=0.0,
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
        if self.stage == ANNOTATE and not (answer.explanation or "").strip():
            return "no explanation"
        texts = {"candidate_text": pair.candidate_text, "job_text": pair.job_text}
        try:
            check_quotes((("candidate_text", item["evidence"]) for item in answer.requirements if item["evidence"]), texts)
        except BadAnswer as bad:
            return bad.reason
        return None


class WholeRun:
    """Labels pairs by `annotate`, or by `level_probs` where no explanation is wanted.

    Args:
        config: what to do.
        pairs: about whom.
        store: what was answered before, and where answers go.
        retry_quarantined: whether to ask again what is in quarantine.
    """

    def __init__(
        self, config: LabelConfig, pairs: Sequence[Pair], store: LabelStore, retry_quarantined: bool = False
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
        self.tallies = {self.stage: Tally(total=len(pairs))}
        self.stopping = False
        self.asker = PairAsker(config.teacher, config.task, self.stage)

    def key(self, pair: Pair) -> str:
        return self.asker.key(pair)

    def unanswered(self) -> Iterator[Pair]:
        """The pairs that are to be asked about."""
        return (pair for pair in self.pairs if not self._settled(self.store.get(self.key(pair))))

    def _settled(self, row: Answered | None) -> bool:
        return row is not None and (row.state == "ok" or not self.retry_quarantined)

    def batches(self, tally: Tally) -> list[list[Pair]]:
        """The pairs that are to be asked about; the others are counted."""
        waiting: list[Pair] = []
        for pair in self.pairs:
            row = self.store.get(self.key(pair))
            if self._settled(row):
                tally.cached += 1
                if row is not None and row.state == "quarantined":
                    tally.quarantined[row.reason or ""] += 1
            else:
                waiting.append(pair)
        # Texts of like length share a batch: less padding to compute.
        waiting.sort(key=lambda pair: len(pair.job_text) + len(pair.candidate_text))
        size = self.config.batch_size
        return [waiting[start : start + size] for start in range(0, len(waiting), size)]

    def keep(self, rows: Sequence[Answered], tally: Tally) -> None:
        """Put answers into the store, and count them once they are there."""
        for future in [self.store.put(row, ()) for row in rows]:
            future.result()
        for row in rows:
            tally.prompt_tokens += row.prompt_tokens
            tally.completion_tokens += row.completion_tokens
            if row.reason is not None:
                tally.quarantined[row.reason] += 1
        tally.asked += len(rows)

    def run(self, tell: Callable[[str, Tally], None]) -> None:
        """Ask what isn't answered yet, batch by batch; `tell` hears of each. Ends early once `stopping` is set."""
        tally = self.tallies[self.stage]
        batches = self.batches(tally)
        tell(self.stage, tally)
        if batches:
            self.asker.get_ready()
        for batch in batches:
            if self.stopping:
                return
            self.keep(self.asker.rows(batch), tally)
            tell(self.stage, tally)

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
