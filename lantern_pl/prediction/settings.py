"""The settings of `lantern predict`, as its config and its --help show them."""

from dataclasses import dataclass, field
from typing import Literal

from lantern_pl.errors import UserError
from lantern_pl.scale.settings import Engine, RaySettings


@dataclass(frozen=True)
class PredictionSettings:
    """What is written where. The pairs are those of data.path: a .jsonl or .parquet file, or a folder of such files."""

    out: str | None = None
    """Folder for the answers; null is run_dir/predictions. The same command again goes on there."""
    shard_rows: int = 4096
    """Rows of the input to each part-NNNNN.parquet. A shard is the unit of work: what a kill costs at most."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do about a row that isn't a pair: stop and name it, or note it in _rejects.jsonl and go on."""
    limit: int | None = None
    """Only the first so many rows, or null for all."""
    engine: Engine = "local"
    """local: the devices of the trainer. ray: the workers of a Ray cluster, each of which answers one shard at a time. What
    one engine has begun the other goes on with."""
    ray: RaySettings = field(default_factory=RaySettings)
    """The cluster, for the engine ray."""

    def __post_init__(self) -> None:
        for name, value in (("shard_rows", self.shard_rows), ("limit", self.limit)):
            if value is not None and value < 1:
                raise UserError(f"prediction.{name} is {value}: it must be at least 1.")
