"""What a person sees while a run goes on."""

import io
from collections import Counter

from rich.console import Console

from lantern_pl.labelling.account import Tally
from lantern_pl.labelling.display import Display


def shown(*told: tuple[str, Tally]) -> str:
    """All that was written to a terminal."""
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    with Display(console) as display:
        for stage, tally in told:
            display.tell(stage, tally)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_stage_says_what_was_done_cached_quarantined_and_spent() -> None:
    tally = Tally(total=20, asked=9, cached=4, blocked=2, prompt_tokens=1200, completion_tokens=34, cost=0.0123)
    tally.quarantined = Counter({"truncated": 2, "refused": 1})
    told = shown(("judge", tally))
    for part in ("judge", "15/20", "4 cached", "3 quarantined", "2 blocked", "1,234 tokens", "cost 0.0123"):
        assert part in told, part


def test_an_unknown_cost_is_said_and_none_is_left_out() -> None:
    assert "cost unknown" in shown(("judge", Tally(total=1, asked=1, cost=None)))
    told = shown(("judge", Tally(total=1, asked=1)))
    assert "cost" not in told
    assert "cached" not in told


def test_each_stage_has_a_bar_that_moves() -> None:
    steps = [("facts", Tally(total=10, asked=asked)) for asked in (0, 5, 10)]
    told = shown(("requirements", Tally(total=10)), *steps)
    assert "requirements" in told
    assert "0/10" in told
    assert "10/10" in told
