"""Teachers that fail in a worker's process."""

from collections.abc import Sequence
from typing import Any

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.signals import Annotation
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher


class NoSuchModel(Teacher):
    """Finds out only when it's about to be asked."""

    lantern_api = 1
    capabilities = frozenset({"chat"})

    def identity(self) -> dict[str, Any]:
        return {"model": "x"}

    async def get_ready_to_chat(self) -> None:
        raise UserError("There is no model 'x' at that server.")

    async def chat(self, request: Any) -> Any:
        raise AssertionError("it was never ready")


class Faulty(Teacher):
    """Quotes what it was asked."""

    lantern_api = 1
    capabilities = frozenset({"annotate"})

    def identity(self) -> dict[str, Any]:
        return {}

    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        raise ValueError(pairs[0].job_text)
