"""How figures are called, which way is better, and how a number is written; which of them intervals tell apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lantern_pl.report.files import Figure


@dataclass(frozen=True)
class About:
    """What the page says of a figure. better: whether more or less of it is, or neither. share: written in percent."""

    title: str
    text: str
    better: Literal["more", "less", ""] = ""
    share: bool = False


ABOUT: Mapping[str, About] = {
    "accuracy": About("Accuracy", "share of pairs whose level is the annotated one", "more", True),
    "macro_f1": About("Macro F1", "F1 of each level, their mean: rare levels count as much as common ones", "more"),
    "quadratic_kappa": About("Quadratic kappa", "agreement beyond chance, by distance: 0 is chance, 1 is perfect", "more"),
    "auroc": About("AUROC", "each level against the rest: 0.5 is chance", "more"),
    "ece": About("Calibration error", "mean distance of confidence and accuracy (ECE)", "less"),
    "brier": About("Brier score", "squared error of the level distribution, 0 to 2", "less"),
    "rouge_1": About("ROUGE-1", "words that the text shares with the annotated explanation", "more"),
    "rouge_2": About("ROUGE-2", "pairs of words that it shares", "more"),
    "rouge_l": About("ROUGE-L", "words in the same order as in the annotated explanation", "more"),
    "valid_format": About("Readable answers", "answers with the task's form", "more", True),
    "ended": About("Ended answers", "answers that came to their end by themselves", "more", True),
    "level_right": About(
        "Right level in the text", "of the readable answers, those that say the annotated level", "more", True
    ),
    "level_consistent": About("Level as the encoder's", "readable answers that say the encoder's level", "more", True),
    "quoting": About("Answers that quote", "answers with at least one quotation", "", True),
    "evidence_verbatim": About(
        "Verbatim evidence", "quotes that stand word by word in the candidate's or job's text", "more", True
    ),
    "skills_named": About("Skills named", "share of the job's skills that the explanation takes up", "more", True),
    "words": About("Words", "length of the explanation"),
    "tokens": About("Tokens", "length of the answer"),
    "distinct_1": About("Different words", "different words, of all words in all texts"),
    "distinct_2": About("Different word pairs", "different neighbouring words, of all in all texts"),
    "entropy": About("Entropy", "of the next token, nats: how undecided the model is"),
    "kl": About("KL", "nats, of the teacher's distribution to the student's", "less"),
    "reverse_kl": About("Reverse KL", "nats, of the student's distribution to the teacher's", "less"),
    "js": About("JS", "nats, between both distributions; at most 0.69", "less"),
    "tvd": About("Total variation", "distance of both distributions, 0 to 1", "less"),
    "cross_entropy": About("Cross entropy", "nats, to the annotation", "less"),
    "cross_entropy_to_samples": About("Cross entropy to samples", "nats, to the teacher's draws", "less"),
    "token_accuracy": About(
        "Token accuracy", "next tokens of the annotation that the student would have chosen", "more", True
    ),
    "hidden_states": About("Hidden states", "distance to the teacher's", "less"),
    "loss": About("Loss", "what was minimised: all terms with their weights", "less"),
}
DIVERGENCES = ("kl", "reverse_kl", "js", "tvd")
LEADING = ("quadratic_kappa", "accuracy", "macro_f1", "level_right", "rouge_l", "evidence_verbatim", "valid_format")
"""What a colleague asks for first, in this order."""


def about(name: str) -> About:
    """A plugin's divergence, say, goes by its own name."""
    return ABOUT.get(name) or About(name.replace("_", " "), "")


def number(value: float | None, share: bool = False) -> str:
    """A number for people: three digits that count."""
    if value is None:
        return "–"
    if share:
        return f"{value:.1%}" if abs(value) < 0.0995 else f"{value:.0%}"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.{max(0, 2 - (abs(value) >= 10) - (abs(value) >= 100))}f}"


def interval(figure: Figure, share: bool = False) -> str:
    """Its interval, empty without one."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{number(figure.low, share)} to {number(figure.high, share)}"


def apart(one: Figure, other: Figure) -> bool:
    """Whether their intervals have nothing in common. Stricter than a test of their difference would be."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low


def verdicts(figures: Sequence[Figure | None], better: str) -> list[str]:
    """Of each of several runs: "best" where its interval lies clear of all others, "behind" where it lies clear of the best
    one, "level" where it can't be told from that; "" without intervals or direction."""
    known = [figure for figure in figures if figure is not None and figure.value is not None and figure.low is not None]
    if len(known) < 2 or not better:
        return [""] * len(figures)
    sign = 1 if better == "more" else -1
    best = max(known, key=lambda figure: sign * (figure.value or 0.0))
    clear = all(figure is best or apart(best, figure) for figure in known)

    def verdict(figure: Figure | None) -> str:
        if not any(figure is each for each in known) or figure is None:
            return ""
        if figure is best:
            return "best" if clear else "level"
        return "behind" if apart(best, figure) else "level"

    return [verdict(figure) for figure in figures]
