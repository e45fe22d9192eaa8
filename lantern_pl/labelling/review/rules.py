"""Which labels may become training data without a person: rules for `lantern review --auto-accept`."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lantern_pl.errors import UserError
from lantern_pl.labelling.evidence import is_verbatim
from lantern_pl.labelling.review.labelled import LabelledPair, Requirement
from lantern_pl.labelling.review.quotes import support

VERDICTS = ("met", "partly", "unmet")


@dataclass(frozen=True)
class Rules:
    """What a label must pass. A rule that is on and can't be judged, for want of votes, say, isn't passed."""

    valid_format: bool = True
    """The level is one of the task's, the explanation isn't blank, confidence is from 0 to 1, and each requirement says
    something, with a verdict that is met, partly or unmet where it has one."""
    no_flags: bool = True
    """Neither text holds hidden characters or known attempts at injection."""
    evidence_verbatim: bool = True
    """There is evidence, and all of it stands in the candidate's text word for word, up to white space."""
    min_support: float | None = None
    """There is evidence, and of each at least this share of the words stands in one of the two texts: for teachers that
    paraphrase. See `quotes.support`."""
    min_agreement: float | None = None
    """At least this share of the samples' votes is for the level; of two samples or more."""
    min_confidence: float | None = None
    """The teacher's own confidence is at least this."""
    max_level_share: float | None = None
    """At most this share of what is accepted has the same level; of a level with too many, those of the least agreement
    and confidence are left out."""

    def __post_init__(self) -> None:
        for name in ("min_support", "min_agreement", "min_confidence", "max_level_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}: give a share above 0 and up to 1.")

    def __str__(self) -> str:
        """The rules that are on, as a decision and a manifest record them."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        on = [name if value is True else f"{name}={value:g}" for name, value in values.items() if value]
        return ", ".join(on) or "no rules"

    def failed(self, pair: LabelledPair, levels: Sequence[str]) -> tuple[str, ...]:
        """The names of the rules that one label fails, of those that look at one label alone; empty: accept it."""
        evidence = list(pair.evidence())
        passed = {
            "valid_format": not self.valid_format or _valid(pair, levels),
            "no_flags": not self.no_flags or not pair.flags,
            "evidence_verbatim": not self.evidence_verbatim
            or (bool(evidence) and all(is_verbatim(said, pair.candidate_text) for said in evidence)),
            "min_support": self.min_support is None
            or _at_least(
                min((support(said, pair.candidate_text, pair.job_text) for said in evidence), default=None), self.min_support
            ),
            "min_agreement": self.min_agreement is None or _at_least(pair.agreement, self.min_agreement),
            "min_confidence": self.min_confidence is None or _at_least(pair.confidence, self.min_confidence),
        }
        return tuple(name for name, ok in passed.items() if not ok)

    def judge(self, pairs: Sequence[LabelledPair], levels: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Pair -> the names of the rules it fails; accept those without. `max_level_share` looks at what else passes."""
        failed = {pair.pair_id: self.failed(pair, levels) for pair in pairs}
        if self.max_level_share is not None:
            passing = [pair for pair in pairs if not failed[pair.pair_id]]
            most = _cap(Counter(pair.level for pair in passing), self.max_level_share)
            for level in levels:
                surest = sorted((pair for pair in passing if pair.level == level), key=_unsure)
                failed |= {pair.pair_id: ("max_level_share",) for pair in surest[most:]}
        return failed


def _valid(pair: LabelledPair, levels: Sequence[str]) -> bool:
    confident = pair.confidence is None or 0 <= pair.confidence <= 1
    explained = bool((pair.explanation or "").strip())
    return pair.level in levels and explained and confident and all(map(_valid_line, pair.requirements))


def _valid_line(line: Requirement) -> bool:
    if line.verdict is None:
        return bool(line.requirement or line.evidence)
    return line.verdict in VERDICTS and bool(line.requirement)


def _at_least(value: float | None, least: float) -> bool:
    return value is not None and value >= least - 1e-9


def _unsure(pair: LabelledPair) -> tuple[float, float]:
    return -(pair.agreement or 0.0), -(pair.confidence or 0.0)


def _cap(counts: Mapping[str, int], share: float) -> int:
    """The most pairs that one level may have, so that it is at most `share` of what is left of all."""
    most = max(counts.values(), default=0)
    while most and most > math.floor(share * sum(min(count, most) for count in counts.values()) + 1e-9):
        most -= 1
    return most
