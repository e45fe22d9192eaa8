"""What a person sees while a label run goes on: one bar a stage."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lantern_pl.labelling.account import Tally


class Display:
    """Progress bars with what was cached and quarantined, tokens, cost, rate and the time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            speed_estimate_period=60,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def tell(self, stage: str, tally: Tally) -> None:
        """Show where a stage is."""
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=tally.total, figures="")
        task = self._bars[stage]
        speed = self._progress.tasks[task].speed
        parts = [
            f"{tally.cached} cached" if tally.cached else "",
            f"{sum(tally.quarantined.values())} quarantined" if tally.quarantined else "",
            f"{tally.blocked} blocked" if tally.blocked else "",
            f"{tally.prompt_tokens + tally.completion_tokens:,} tokens",
            f"cost {tally.cost:.4f}" if tally.cost else "" if tally.cost == 0 else "cost unknown",
            f"{speed:.1f}/s" if speed else "",
        ]
        self._progress.update(task, completed=tally.done, figures=", ".join(part for part in parts if part))
