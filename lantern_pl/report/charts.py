"""The report's charts: curves, confusion, reliability, and figures with their intervals. Inline SVG, no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lantern_pl.report.collect import Points
from lantern_pl.report.files import Bin, Figure
from lantern_pl.report.svg import Axis, line, path, picture, shortened, tag, text

_MOST_POINTS = 300
"""Of a longer curve, neighbours are averaged."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart. `color` is a class of the page, `dots` marks each point."""

    label: str
    color: str
    points: Points
    dots: bool = False


def curves(title: str, lines: Sequence[Curve], y_label: str) -> Markup:
    """Lines over optimizer steps, each ending in its last value."""
    width, height, left, right, top, bottom = 360, 230, 48, 14, 30, 40
    lines = [curve for curve in lines if curve.points]
    shown = [(curve, _thinned(curve.points)) for curve in lines]
    xs = [x for _, points in shown for x, _ in points]
    ys = [y for _, points in shown for _, y in points]
    x = Axis(0, max(xs), left, width - right)
    # Losses and shares begin at zero; what is far from it (or below) has its own range.
    low = 0.0 if min(ys) >= 0 and min(ys) < 0.7 * max(ys) else min(ys) - 0.05 * (max(ys) - min(ys))
    high = max(ys) + 0.04 * (max(ys) - low)
    y = Axis(low, high if high > 0 or low < 0 else 1.0, height - bottom, top)
    parts = _frame(x, y, width, height, left, right, top, bottom, "optimizer steps", y_label)
    for curve, points in shown:
        parts.append(path([(x(a), y(b)) for a, b in points], f"line {curve.color}{' dashed' if curve.dots else ''}"))
        if curve.dots or len(points) == 1:
            parts += [tag("circle", tag("title", f"{curve.label}, step {a:.0f}: {b:.4g}"), cx=x(a), cy=y(b), r=3.2,
                          class_=f"dot {curve.color}") for a, b in points]  # fmt: skip
    last = "; ".join(f"{curve.label} from {curve.points[0][1]:.3g} to {curve.points[-1][1]:.3g}" for curve in lines)
    return picture(width, height, f"Curve of {title} over the steps: {last}", *parts)


def _thinned(points: Points) -> Points:
    size = -(-len(points) // _MOST_POINTS)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _frame(
    x: Axis,
    y: Axis,
    width: float,
    height: float,
    left: float,
    right: float,
    top: float,
    bottom: float,
    x_label: str,
    y_label: str,
) -> list[Markup]:
    parts = []
    for tick in y.ticks:
        parts += [
            line(left, y(tick), width - right, y(tick), "grid"),
            text(left - 6, y(tick) + 4, y.say(tick), "tick", "end"),
        ]
    for tick in x.ticks:
        parts += [text(x(tick), height - bottom + 16, x.say(tick), "tick", "middle")]
    parts.append(line(left, height - bottom, width - right, height - bottom, "axis"))
    parts.append(text((left + width - right) / 2, height - 6, x_label, "tick", "middle"))
    parts.append(text(4, 14, y_label, "axis-name"))
    return parts


def confusion(matrix: Sequence[Sequence[int]], levels: Sequence[str], name: str) -> Markup:
    """Rows: the annotation. Columns: what the model said. A cell is as dark as its share of its row."""
    cell, left, top = 70, 78, 52
    count = len(levels)
    width, height = left + cell * count + 50, top + cell * count + 6
    parts = [
        text(4, 14, f"{shortened(name, 40)} said", "axis-name"),
        text(4, top - 10, "annotated", "tick"),
    ]
    for column, level in enumerate(levels):
        parts.append(text(left + cell * (column + 0.5), top - 10, shortened(level, 11), "tick", "middle"))
    for row, (level, counts) in enumerate(zip(levels, matrix, strict=False)):
        middle = top + cell * (row + 0.5)
        parts.append(text(left - 8, middle + 4, shortened(level, 14), "tick", "end"))
        for column, cases in enumerate(counts):
            share = cases / sum(counts) if sum(counts) else 0.0
            across = left + cell * column
            said = tag("title", f"{cases} pairs annotated {level}, {name} said {levels[column]}: {share:.0%} of the row")
            kind = "cell right" if row == column else "cell"
            parts.append(tag("rect", said, x=across + 1, y=top + cell * row + 1, width=cell - 2, height=cell - 2, rx=4,
                             class_=kind, fill_opacity=f"{0.06 + 0.6 * share:.2f}"))  # fmt: skip
            parts.append(text(across + cell / 2, middle + 1, f"{cases}", "count", "middle"))
            parts.append(text(across + cell / 2, middle + 18, f"{share:.0%}", "cell-share", "middle"))
        parts.append(text(left + cell * count + 8, middle + 4, f"of {sum(counts)}", "tick"))
    right = sum(matrix[level][level] for level in range(count))
    total = sum(map(sum, matrix))
    return picture(width, height, f"Confusion of {name}: {right} of {total} pairs have the annotated level", *parts)


def reliability(bins: Sequence[Bin], name: str, color: str) -> Markup:
    """How often a level was right, by how sure the model was. On the diagonal confidence is kept; below it's too high."""
    size, left, top, bottom, strip = 230, 46, 44, 40, 46
    width, height = left + size + 14, top + size + strip + bottom
    x, y = Axis(0, 1, left, left + size), Axis(0, 1, top + size, top)
    parts = []
    for tick in y.ticks:
        parts += [line(left, y(tick), left + size, y(tick), "grid"), text(left - 6, y(tick) + 4, y.say(tick), "tick", "end")]
        parts.append(text(x(tick), top + size + strip + 16, x.say(tick), "tick", "middle"))
    parts.append(line(x(0), y(0), x(1), y(1), "ideal"))
    most = max((each.count for each in bins), default=0) or 1
    filled = [each for each in bins if each.count and each.confidence is not None and each.accuracy is not None]
    for each in bins:
        across, wide = x(each.low), x(each.high) - x(each.low)
        tall = (strip - 14) * each.count / most
        said = f"{each.count} pairs with confidence {each.low:.2f} to {each.high:.2f}"
        parts.append(
            tag("rect", tag("title", said), x=across + 1, y=top + size + strip - tall, width=max(wide - 2, 1.0),
                height=tall, class_="bar quiet")
        )  # fmt: skip
    for each in filled:
        assert each.confidence is not None
        assert each.accuracy is not None
        said = f"confidence {each.confidence:.2f}, right {each.accuracy:.2f}, {each.count} pairs"
        radius = 3 + 5 * (each.count / most) ** 0.5
        parts.append(line(x(each.confidence), y(each.confidence), x(each.confidence), y(each.accuracy), f"gap {color}"))
        parts.append(
            tag("circle", tag("title", said), cx=x(each.confidence), cy=y(each.accuracy), r=radius, class_=f"dot {color}")
        )
    parts.append(line(left, top + size + strip, left + size, top + size + strip, "axis"))
    parts.append(text(left + size / 2, height - 6, "confidence in its level; bars: how many pairs", "tick", "middle"))
    parts.append(text(4, 14, shortened(name, 40), "axis-name"))
    parts.append(text(4, 34, "share of right levels", "tick"))
    label = "; ".join(f"at {each.confidence:.2f} right {each.accuracy:.2f} of {each.count}" for each in filled)
    return picture(width, height, f"Reliability diagram of {name}: {label or 'no pairs'}", *parts)


def interval_rows(
    figures: Mapping[str, tuple[Figure, str]], low: float, high: float, reference: float | None = None
) -> Markup:
    """One line for each name: the value as a dot, its interval as whiskers, on a scale of their own from low to high.

    figures: name -> figure and its colour's class. reference: a value to hold them against.
    """
    width, step = 190, 18
    height = step * len(figures) + 16
    x = Axis(low, high, 6, width - 6, ticks=2)
    parts = [line(x(tick), 2, x(tick), height - 14, "grid") for tick in x.ticks]
    parts += [text(x(tick), height - 3, x.say(tick), "tick small", _anchor(x(tick), width)) for tick in x.ticks]
    if reference is not None:
        parts.append(line(x(reference), 0, x(reference), height - 14, "reference"))
    said = []
    for row, (name, (figure, color)) in enumerate(figures.items()):
        if figure.value is None:
            continue
        y = step * row + step / 2 + 1
        if figure.low is not None and figure.high is not None:
            parts.append(line(x(figure.low), y, x(figure.high), y, f"whisker {color}"))
            parts += [line(x(end), y - 4, x(end), y + 4, f"whisker {color}") for end in (figure.low, figure.high)]
        parts.append(
            tag("circle", tag("title", f"{name}: {figure.value:.4g}"), cx=x(figure.value), cy=y, r=4, class_=f"dot {color}")
        )
        said.append(f"{name} {figure.value:.3g}")
    return picture(width, height, f"Values with intervals: {', '.join(said)}", *parts, class_="chart cell-chart")


def _anchor(at: float, width: float) -> str:
    return "start" if at < 14 else "end" if at > width - 14 else "middle"


def scale_of(figures: Sequence[Figure], least: float | None = None, most: float | None = None) -> tuple[float, float]:
    """The ends of a scale that holds all values and intervals, and the given numbers."""
    numbers = [n for f in figures for n in (f.value, f.low, f.high) if n is not None]
    numbers += [n for n in (least, most) if n is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def ratio_bar(ratio: float, color: str) -> Markup:
    """What is left of a loss, as a bar; the line is where it was."""
    width, height = 150, 16
    x = Axis(0, max(1.1, ratio * 1.05), 0, width)
    return picture(
        width, height, f"{ratio:.0%} of before",
        tag("rect", x=0, y=3, width=x(ratio), height=10, rx=2, class_=f"bar {color}"),
        line(x(1), 0, x(1), height, "reference"), class_="chart cell-chart",
    )  # fmt: skip


def ratio_of(share: float) -> Markup:
    """A small bar in a table's cell, from nothing to the column's largest."""
    width = 84
    bar = tag("rect", x=0, y=1, width=max(width * share, 1.0), height=5, rx=2, class_="bar student")
    return picture(width, 7, f"{share:.0%} of the largest", bar, class_="chart cell-chart")
