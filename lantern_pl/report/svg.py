"""Pictures as text: elements of SVG with everything escaped, and the numbers of an axis. Colours are the page's classes."""

import math
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element. `class_` is class, other underscores are hyphens; attributes that are None are left out."""
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    written = Markup("").join(Markup(' {}="{}"').format(key, _plain(value)) for key, value in given)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(map(escape, content)))


def picture(width: float, height: float, label: str, *content: Any, class_: str = "chart") -> Markup:
    """A picture that shrinks with the page. `label` says in words what it shows."""
    box = f"0 0 {_plain(width)} {_plain(height)}"
    return tag("svg", *content, class_=class_, viewBox=box, width=width, height=height, role="img", aria_label=label)


def text(x: float, y: float, content: Any, class_: str | None = None, anchor: str | None = None) -> Markup:
    return tag("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Straight lines from point to point."""
    return tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=class_)


class Axis:
    """Numbers from `low` to `high`, drawn from pixel `start` to pixel `end`, with some round numbers as ticks."""

    def __init__(self, low: float, high: float, start: float, end: float, ticks: int = 5) -> None:
        if high <= low:
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self.start, self.end = low, high, start, end
        step = _round_step((high - low) / ticks)
        first = math.ceil(low / step - 1e-9)
        self.ticks = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
        self._decimals = next(decimals for decimals in range(20) if abs(round(step, decimals) - step) < step * 1e-6)

    def __call__(self, value: float) -> float:
        """The pixel of a number; of one outside, that of the nearer end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def say(self, tick: float) -> str:
        return f"{tick:,.{self._decimals}f}"


def _round_step(step: float) -> float:
    size = 10.0 ** math.floor(math.log10(step))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= step * 0.999)


def _plain(value: Any) -> Any:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def shortened(words: str, characters: int) -> str:
    return words if len(words) <= characters else words[: characters - 1].rstrip() + "…"
