"""What `lantern label --config` is told."""

from dataclasses import dataclass, field

from lantern_pl.errors import UserError
from lantern_pl.scale.settings import Engine, RaySettings
from lantern_pl.tasks import Task
from lantern_pl.tasks.guide import Guide
from lantern_pl.teachers import Teacher


@dataclass
class LabelConfig:
    """Label pairs with a teacher: each answer is kept in a store, from which the same command goes on."""

    labels: str
    """Folder for the store, the exported labels.parquet, its manifest and the report. Texts of persons are in it: it's
    made for its owner alone."""
    pairs: str
    """The pairs to label: .jsonl, .parquet or a `datasets` folder. Levels that they have already aren't looked at."""
    teacher: Teacher
    """Who labels. One that can `chat` is asked the guide's stages; any other that can `annotate`, about whole pairs."""
    task: Task = field(default_factory=Task)
    """Levels, and the question and answer of students and of teachers that aren't asked in stages."""
    guide: Guide = field(default_factory=Guide)
    """How a chat teacher is asked: sections of the prompt, and stages that build on each other."""
    samples: int = 1
    """How often the stage that decides on the level is asked about a pair; the answers become votes. Above 1 the
    temperature must be above 0."""
    temperature: float = 0.0
    """Of chat teachers' answers."""
    seed: int = 0
    """Another seed, other samples; the same seed finds the answers that are there already."""
    repair_turns: int = 1
    """How often a chat teacher may correct an answer that can't be read."""
    explain: bool = True
    """false: levels alone, from a teacher that can `level_probs`; many times faster than text."""
    verbatim_quotes: bool = True
    """Of teachers that aren't asked in stages: whether an explanation is no label where it puts words into quotation marks
    that stand in neither text. false keeps those of a small model, whose students then learn to misquote as well."""
    exclude_flagged: bool = False
    """Leave out pairs whose texts hold invisible characters or known attempts at injection; they are flagged anyway."""
    limit: int | None = None
    """Only the first so many pairs."""
    batch_size: int = 8
    """Pairs at once for teachers in this process."""
    budget: float | None = None
    """Money that this run may spend at most; needs the teacher's price. The run stops before it could spend more."""
    engine: Engine = "local"
    """local: this process asks. ray: the workers of a Ray cluster ask, and this process keeps the answers. What one engine
    has begun the other goes on with."""
    ray: RaySettings = field(default_factory=RaySettings)
    """The cluster, for the engine ray."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("repair_turns", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: give {least} or more.")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit is {self.limit}: give 1 or more, or null for all pairs.")
        if not 0 <= self.temperature <= 2:
            raise UserError(f"temperature is {self.temperature}: give 0 to 2.")
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                f"samples is {self.samples} at temperature 0, where all samples are the same answer: give a temperature, "
                "such as 0.7, or one sample."
            )
