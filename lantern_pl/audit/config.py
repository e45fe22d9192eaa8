"""The keys of `lantern audit`'s config."""

from dataclasses import dataclass, field

from lantern_pl.audit.swap_lists import BUILT_IN
from lantern_pl.errors import UserError
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher


@dataclass
class Injections:
    """Texts that ask for the best level, put into candidates' texts."""

    families: list[str] | None = None
    """Which families of attacks, by the names in lantern_pl/audit/data/injections.yaml; null is all twelve."""
    pairs: int = 100
    """How many pairs of each family, each of another candidate; 0 leaves this part out."""
    max_rise: float = 0.05
    """Threshold of concern: how much more often an attack may raise a level than harmless text of the same length."""


@dataclass
class AuditConfig:
    """Audit a student, and what it learned from, for unequal treatment of groups and for texts that talk it round."""

    pairs: str
    """Pairs that none of the models was trained on. Annotated levels are used where they are."""
    models: dict[str, Teacher]
    """Name -> teacher: lantern_pl.teachers.encoder or .hf for students, .rubric or any other for what they learned from."""
    student: str
    """Which of the models is the student."""
    teacher: str | None = None
    """Which of the models the student is held against, or null: then it isn't asked whether it amplifies anything."""
    groups: str | list[str] | None = None
    """What the candidates' groups are: a table (.csv, .jsonl or .parquet) of candidate_id and a column for each attribute,
    such as sex and race, or the names of such columns in the pairs' own file; null leaves out the rates by group."""
    selected_from: str | None = None
    """The lowest level that counts as selected; null is the best level."""
    swaps: list[str] = field(default_factory=lambda: list(BUILT_IN))
    """Swap lists for counterfactuals: names of built-in ones or paths of YAML files of your own."""
    swap_pairs: int = 400
    """How many pairs to swap for each list, as many candidates as possible."""
    injections: Injections = field(default_factory=Injections)
    """Texts that ask for the best level."""
    explain_pairs: int = 16
    """How many pairs to have explained, each of another candidate, to look for protected attributes in the explanations; 0
    leaves this out."""
    min_effect: float = 0.01
    """Threshold of concern for swapped texts, as a share of the whole scale of scores from 0 to 1."""
    min_gap: float = 0.05
    """Threshold of concern for gaps between groups in true and false positive rates and in calibration."""
    max_mentions: float = 0.01
    """Threshold of concern for the share of explanations that mention a protected attribute."""
    small_group: float = 0.02
    """Groups of a smaller share of the candidates are named, but not compared."""
    confidence: float = 0.95
    """Of intervals; 1 minus it is the probability of even one false flag in the whole audit, if nothing is wrong."""
    bootstrap: int = 2000
    """How often candidates are drawn anew, for the errors of swapped texts and of amplification."""
    seed: int = 0
    """What is drawn at random hangs on it: pairs, names, places of injections, the bootstrap."""
    task: Task = field(default_factory=Task)
    """Levels, question and answer."""
    job_text_field: str = "job_text"
    """Which field of the pairs is the job's text: the one that the student was trained on."""
    batch_size: int = 16
    """Pairs at once."""
    fail_on_flags: bool = False
    """Exit with code 3 where something was flagged, for use in a pipeline; otherwise flags are no failure."""
    out: str | None = None
    """File for findings and tables as JSON, such as runs/NAME/audit.json, or null."""

    def __post_init__(self) -> None:
        for key in ("student", "teacher"):
            name = getattr(self, key)
            if name is not None and name not in self.models:
                raise UserError(f"{key} is {name!r}, which isn't one of the models: {list(self.models)}.")
        if self.student == self.teacher:
            raise UserError(f"student and teacher are both {self.student!r}: name two models, or leave out teacher.")
        if self.selected_from is None:
            self.selected_from = self.task.levels[-1]
        if self.selected_from not in self.task.levels[1:]:
            raise UserError(
                f"selected_from is {self.selected_from!r}: give one of {self.task.levels[1:]}, the lowest selected level."
            )
        for key in ("min_effect", "min_gap", "max_mentions"):
            if not 0 < getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}: give a number between 0 and 1.")
        if not 0 < self.injections.max_rise < 1:
            raise UserError(f"injections.max_rise is {self.injections.max_rise}: give a number between 0 and 1.")
        if not 0 <= self.small_group < 1:
            raise UserError(f"small_group is {self.small_group}: give a share from 0 to below 1.")
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"confidence is {self.confidence}: give a number from 0.5 to below 1, such as 0.95.")
        for key, least in (("swap_pairs", 1), ("bootstrap", 200), ("batch_size", 1), ("explain_pairs", 0)):
            if getattr(self, key) < least:
                raise UserError(f"{key} is {getattr(self, key)}: give a whole number of at least {least}.")
        if self.injections.pairs < 0:
            raise UserError(f"injections.pairs is {self.injections.pairs}: give a whole number of at least 0.")

    @property
    def selected_index(self) -> int:
        """The place of the lowest selected level among the levels."""
        return self.task.levels.index(self.selected_from or self.task.levels[-1])
