"""What `lantern test` measures beyond the loss: the `evaluation` part of a config."""

from dataclasses import dataclass

from lantern_pl.errors import UserError
from lantern_pl.teachers.contract import Teacher
from lantern_pl.teachers.rule_based import RubricTeacher


@dataclass(frozen=True)
class Evaluation:
    """What `lantern test` measures; the other commands take it along unused."""

    teacher: Teacher | None = None
    """Whom the student is held against where that isn't the teacher of its loss: an encoder student that learned from labels
    on disk has none there. null is the loss's own."""
    sft: str | None = None
    """Folder of a student that was trained without the teacher, or of its run: what distillation is held against. null
    leaves out the retention of the teacher's lead over it."""
    encoder: str | None = None
    """Folder of an encoder student, or of its run: whether a decoder's texts say the same level is held against it."""
    judge: Teacher | None = None
    """Who says which of two explanations is better, the student's or the teacher's: any teacher with chat or annotate, such
    as lantern_pl.teachers.litellm. It's asked twice about each pair, in both orders. null asks nobody."""
    explain_pairs: int = 32
    """How many test pairs to have explained by each model, drawn by seed; 0 for none."""
    max_new_tokens: int | None = None
    """Length limit of explanations, for all local models alike; null takes the student's."""
    bootstrap: int = 1000
    """Resamples of the test pairs' jobs behind each interval, at least 100."""
    seed: int = 0
    """Which pairs are explained, and which resamples are drawn."""
    samples: int = 6
    """How many pairs to put into test.json with the answers of all models, for a person to read."""
    bins: int = 10
    """Bins of the top level's probability, for the calibration error and the reliability diagram."""
    ask_teacher: bool = True
    """Whether to measure the teacher too, which takes its time; without, there is no retention and no divergence."""

    def __post_init__(self) -> None:
        least = {"explain_pairs": 0, "max_new_tokens": 1, "bootstrap": 100, "samples": 0, "bins": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UserError(f"evaluation.{name} is {value}: give {smallest} or more.")
        if self.teacher is not None and not {"level_probs", "annotate", "score_tokens"} & self.teacher.capabilities:
            raise UserError(
                f"evaluation.teacher is a {type(self.teacher).__name__}, which says nothing about pairs: give a teacher "
                "with level_probs, annotate or score_tokens."
            )
        if isinstance(self.judge, RubricTeacher):
            raise UserError("evaluation.judge is the rubric, whose rules can't read a question: give an LLM.")
        if self.judge is not None and not {"chat", "annotate"} & self.judge.capabilities:
            raise UserError(
                f"evaluation.judge is a {type(self.judge).__name__}, which writes no text (it can: "
                f"{', '.join(sorted(self.judge.capabilities)) or 'nothing'}): give a teacher with chat or annotate."
            )
