"""Protected attributes that explanations mention: what an explanation speaks of may have been weighed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lantern_pl.audit.config import AuditConfig
from lantern_pl.audit.data_files import FOLDER, read_yaml
from lantern_pl.audit.findings import Comparison, Table
from lantern_pl.audit.intervals import rate_above, wilson
from lantern_pl.data.pair import Pair
from lantern_pl.labelling.evidence import is_verbatim

_AROUND = 30
_MAX_EXAMPLES = 10
_WORD_BEFORE, _WORD_AFTER = re.compile(r"[\w'-]+\W{1,3}$"), re.compile(r"^\W{1,3}[\w'-]+")


@dataclass(frozen=True)
class Mention:
    """One place of an explanation. in_candidate: whether the candidate's own text says these words."""

    attribute: str
    words: str
    around: str
    in_candidate: bool


def read_patterns() -> dict[str, re.Pattern[str]]:
    """Attribute -> what finds words that speak of it."""
    return {
        attribute: re.compile(rf"(?i)(?<![\w-])(?:{'|'.join(patterns)})(?![\w-])")
        for attribute, patterns in read_yaml(FOLDER / "mentions.yaml").items()
    }


def find_mentions(explanation: str, pair: Pair, patterns: Mapping[str, re.Pattern[str]]) -> list[Mention]:
    """Every place where the explanation speaks of a protected attribute, but for what it has from the job's text.

    Words are the job's where they stand in its text together with the word before or after them: "a young company" is,
    "too young" isn't, even where the job is at a young company.
    """
    found = []
    for attribute, pattern in patterns.items():
        for match in pattern.finditer(explanation):
            if not _is_quoted(match, explanation, pair.job_text):
                around = explanation[max(match.start() - _AROUND, 0) : match.end() + _AROUND]
                own = is_verbatim(match[0].casefold(), pair.candidate_text.casefold())
                found.append(Mention(attribute, match[0], " ".join(around.split()), own))
    return found


def _is_quoted(match: re.Match[str], explanation: str, job_text: str) -> bool:
    job = job_text.casefold()
    before = _WORD_BEFORE.search(explanation[: match.start()])
    after = _WORD_AFTER.search(explanation[match.end() :])
    passages = [(before[0] if before else "") + match[0]] if before else []
    passages += [match[0] + after[0]] if after else []
    return any(is_verbatim(passage.casefold(), job) for passage in passages or [match[0]])


def mention_report(
    explained: Mapping[str, Sequence[tuple[Pair, str]]], config: AuditConfig
) -> tuple[list[Comparison], list[Table]]:
    """explained: model -> pairs, each of another candidate, with its explanations. A comparison with the threshold for each
    model, a table of rates and one of places."""
    patterns = read_patterns()
    found: list[Comparison] = []
    rows: list[list[str | float | None]] = []
    places: list[list[str | float | None]] = []
    for model, texts in explained.items():
        mentions = [find_mentions(explanation, pair, patterns) for pair, explanation in texts]
        n, count = len(texts), sum(map(bool, mentions))
        estimate = rate_above(count, n, config.max_mentions, config.confidence)
        sentence = f"{count} of {n} explanations mention a protected attribute"
        found.append(Comparison("rate", f"{model}: mentions in explanations", sentence, estimate, config.max_mentions))
        for attribute in patterns:
            with_it = [[each for each in one if each.attribute == attribute] for one in mentions]
            times = sum(map(bool, with_it))
            low, high = wilson(times, n, config.confidence)
            invented = sum(any(not each.in_candidate for each in one) for one in with_it)
            rows.append([model, attribute, n, times, times / n, low, high, invented])
        shown = [(pair.pair_id, each) for (pair, _), one in zip(texts, mentions, strict=True) for each in one]
        places += [[model, name, each.attribute, each.words, each.around] for name, each in shown[:_MAX_EXAMPLES]]
    tables = [
        Table(
            "Mentions of protected attributes in explanations",
            ["model", "attribute", "explanations", "with a mention", "rate", "low", "high", "not in the candidate's text"],
            rows,
            "Found by word lists, without what is the job's own wording: look at the places before you rely on it.",
        )
    ]
    if places:
        columns = ["model", "pair", "attribute", "words", "around"]
        tables.append(Table(f"Places of mentions, up to {_MAX_EXAMPLES} of each model", columns, places))
    return found, tables
