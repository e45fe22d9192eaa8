"""What configs say about the engine; ray itself isn't imported for that."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lantern_pl.errors import UserError

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class RaySettings:
    """The cluster of the engine ray, and its workers. They read models and data by the same paths as this command does, so
    on several machines these are on a file system that all of them share; only this command writes."""

    address: str | None = None
    """null starts Ray on this machine, for this command alone. auto, or HOST:PORT of the head, joins a cluster that runs."""
    workers: int | None = None
    """How many there are at most; null for as many as the cluster has room for. Limits of a teacher, such as max_in_flight,
    rpm and tpm, are those of each worker."""
    cpus_per_worker: float = 1.0
    """What the cluster reserves for each worker. A worker that waits for a server needs less than one."""
    gpus_per_worker: float = 0.0
    """Likewise; at 0 workers see no GPU."""
    env: list[str] = field(default_factory=list)
    """Names of environment variables that the workers get from this command, such as OPENAI_API_KEY: for a cluster that
    runs already, which started without them."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"ray.workers is {self.workers}: give 1 or more, or null for all that there is room for.")
        if not (math.isfinite(self.cpus_per_worker) and self.cpus_per_worker > 0):
            raise UserError(f"ray.cpus_per_worker is {self.cpus_per_worker}: give a number above 0.")
        if not (math.isfinite(self.gpus_per_worker) and self.gpus_per_worker >= 0):
            raise UserError(f"ray.gpus_per_worker is {self.gpus_per_worker}: give a number of 0 or more.")
