"""What `lantern cache` is told: the teacher, the data, and what to keep of what the teacher says."""

from dataclasses import dataclass, field
from typing import Literal

from lantern_pl.errors import UserError
from lantern_pl.scale.settings import Engine, RaySettings
from lantern_pl.signal_sets.formats import LogProbs
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher

Mode = Literal["top_k", "sampled", "hidden"]
Kind = Literal["tokens", "levels"]


@dataclass
class CacheConfig:
    """The keys of a config for `lantern cache`."""

    teacher: Teacher
    """Who is asked, such as lantern_pl.teachers.hf."""
    pairs: str | list[str]
    """The pairs, in any form that `lantern fit` reads; a list for a fit with files of its own for validation and test. For
    token signals they need level and explanation."""
    signals: str
    """Folder of the signal set."""
    kinds: list[Kind] | None = None
    """What to keep: tokens (for decoder students), levels (for encoder students), or both; null takes all that the teacher
    can tell."""
    mode: Mode = "top_k"
    """How token signals are kept. top_k: the most probable tokens, and the mass of all others as one. sampled: tokens drawn
    from the distribution, for the forward KL alone, of which the gradient stays unbiased. hidden: hidden states as they are,
    lossless; many times larger."""
    k: int = 32
    """Tokens per position, for top_k."""
    rounds: int = 50
    """Tokens drawn per position, for sampled."""
    log_probs: LogProbs = "u8"
    """How top_k keeps log-probabilities: u8, a byte each, or f32, exactly as they are."""
    packed: bool = False
    """Keep ids in as few bits as the vocabulary needs instead of 32: a third smaller. Of vocabularies above 65,536,
    decoding them takes longer."""
    temperature: float = 1.0
    """Of the distributions; a student learns from them at this temperature only. Levels and hidden states have none."""
    seed: int = 0
    """Of the draws of sampled."""
    task: Task = field(default_factory=Task)
    """The question, its levels, and the form of the answer: that of the fit."""
    job_text_field: str = "job_text"
    """The field that is the job's text: that of the fit."""
    max_length: int = 512
    """Longest example in tokens: that of the fit."""
    batch_size: int = 8
    """Pairs that the teacher is asked about at once. Pairs of the same job come together, so that a teacher with
    share_prefixes runs the job's text once a batch."""
    pairs_per_shard: int = 256
    """Pairs in a file. An interruption loses what was done since the last file; a fit keeps all files open."""
    sample: int = 16
    """Pairs for the report on how far divergences on these signals are from those on whole distributions."""
    compare_with: str | None = None
    """The student's model, whose distributions the report compares the teacher's with; null takes the teacher's own, at
    twice the temperature."""
    limit: int | None = None
    """Only the first so many pairs."""
    engine: Engine = "local"
    """local: the teacher in this process. ray: one in each worker of a Ray cluster, which record a file each at a time. What
    one engine has begun the other goes on with."""
    ray: RaySettings = field(default_factory=RaySettings)
    """The cluster, for the engine ray."""

    def __post_init__(self) -> None:
        least = {"k": 1, "rounds": 1, "max_length": 1, "batch_size": 1, "pairs_per_shard": 1, "sample": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"{name} is {getattr(self, name)}: give {bound} or more.")
        if self.rounds > 255:
            raise UserError(f"rounds is {self.rounds}: give 1 to 255; about 50 are enough.")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}: give a finite number above 0.")
        if self.mode == "hidden" and self.temperature != 1:
            raise UserError("temperature is only for top_k and sampled: hidden states serve every temperature.")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit is {self.limit}: give 1 or more, or null for all pairs.")
        if not self.pairs:
            raise UserError("pairs is empty: give a file, or a list of files.")
        if self.kinds is not None and not self.kinds:
            raise UserError("kinds is empty: give tokens, levels or both, or null for all that the teacher can tell.")
