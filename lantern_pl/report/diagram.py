"""The provenance as a picture: boxes in layers, what was there first on top, and arrows from what went into what."""

from collections import defaultdict
from itertools import pairwise

from markupsafe import Markup

from lantern_pl.report.graph import LABELS, MODEL, PAIRS, SEED, SIGNALS, STUDENT, TEACHER, Node, Provenance
from lantern_pl.report.svg import picture, shortened, tag, text

_BOX, _TALL, _BETWEEN, _DOWN, _EDGE = 212, 74, 30, 64, 12
_SWEEPS = 12
Point = tuple[float, float]
KINDS = {
    PAIRS: "pairs",
    TEACHER: "teacher",
    MODEL: "model",
    LABELS: "labels",
    SEED: "reviewed seed",
    SIGNALS: "signal set",
    STUDENT: "student",
}
"""Kind of a node -> what the page calls it."""


def draw(provenance: Provenance) -> Markup:
    """The graph. Arrows of things that have changed or are missing are drawn apart from the others."""
    layers, places = _layers(provenance)
    width = max(x for x, _ in places.values()) + _BOX + 2 * _EDGE
    height = len(layers) * (_TALL + _DOWN) - _DOWN + 2 * _EDGE
    arrow = tag(
        "defs",
        *(
            tag("marker", tag("path", d="M0 0L8 4L0 8z", class_=f"arrow {state}"), id=f"arrow-{state}", viewBox="0 0 8 8",
                refX=7, refY=4, markerWidth=9, markerHeight=9, markerUnits="userSpaceOnUse", orient="auto")
            for state in ("same", "unchecked", "changed", "missing")
        ),
    )  # fmt: skip
    lines, labels = _arrows(provenance, places)
    boxes = [_box(node, *places[key]) for key, node in provenance.nodes.items()]
    names = "; ".join(
        f"{node.title} ({KINDS[node.kind]}) from {', '.join(provenance.nodes[e.source].title for e in provenance.into(key))}"
        for key, node in provenance.nodes.items()
        if provenance.into(key)
    )
    return picture(width, height, f"What came from what: {names}", arrow, *lines, *boxes, *labels, class_="provenance")


def _box(node: Node, x: float, y: float) -> Markup:
    marks = f"node {node.kind}{' missing' if node.missing else ''}{' reported' if node.run else ''}"
    full = "\n".join([f"{KINDS[node.kind]}: {node.title}", node.where, *node.facts])
    parts = [
        tag("title", full),
        tag("rect", x=x, y=y, width=_BOX, height=_TALL, rx=8),
        tag("rect", x=x, y=y + 8, width=4, height=_TALL - 16, rx=2, class_="stripe"),
        text(x + 14, y + 17, KINDS[node.kind], "node-kind"),
        text(x + 14, y + 35, shortened(node.title, 27), "node-title"),
    ]
    parts += [text(x + 14, y + 51 + 15 * row, shortened(fact, 34), "node-fact") for row, fact in enumerate(node.facts[:2])]
    return tag("g", *parts, class_=marks)


def _arrows(provenance: Provenance, places: dict[str, tuple[float, float]]) -> tuple[list[Markup], list[Markup]]:
    """Lines, and what is written on them; several edges between the same two are one line."""
    joined: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for edge in provenance.edges:
        if (edge.relation, edge.state) not in joined[edge.source, edge.target]:
            joined[edge.source, edge.target].append((edge.relation, edge.state))
    worst = ("changed", "missing", "same", "unchecked")
    lines, labels = [], []
    taken: list[tuple[float, float, float]] = []
    for (source, target), said in joined.items():
        state = min((state for _, state in said), key=worst.index)
        steps = [places[key] for key in (source, *_way(source, target, places), target)]
        # From the foot of a box to the head of the next; straight past the boxes of a layer between.
        bends = [((x + _BOX / 2, y + _TALL), (next_x + _BOX / 2, next_y)) for (x, y), (next_x, next_y) in pairwise(steps)]
        d = "L".join(
            f"{x:.0f} {y:.0f}C{x:.0f} {(y + to_y) / 2:.0f} {to_x:.0f} {(y + to_y) / 2:.0f} {to_x:.0f} {to_y:.0f}"
            for (x, y), (to_x, to_y) in bends
        )
        lines.append(tag("path", d=f"M{d}", class_=f"edge {state}", marker_end=f"url(#arrow-{state})"))
        words = ", ".join(dict.fromkeys(relation for relation, _ in said)) + (
            " ⚠" if state in ("changed", "missing") else ""
        )
        x, y = _free_place(bends, len(words) * 6.4, taken)
        taken.append((x, y, len(words) * 6.4))
        labels.append(text(x, y + 4, words, "edge-label", "middle"))
    return lines, labels


def _free_place(bends: list[tuple[Point, Point]], width: float, taken: list[tuple[float, float, float]]) -> Point:
    """A place on a line, from its beginning on, where words of this width meet none of those that are there."""
    places = [_on_bend(*bend, share) for bend in bends for share in (0.5, 0.35, 0.65, 0.22, 0.78)]
    for x, y in places:
        if not any(
            abs(x - other_x) < (width + other) / 2 + 4 and abs(y - other_y) < 15 for other_x, other_y, other in taken
        ):
            return x, y
    return places[0]


def _on_bend(start: Point, end: Point, share: float) -> Point:
    """A point of the cubic curve that leaves and arrives upright."""
    (x, y), (to_x, to_y) = start, end
    weights = [(1 - share) ** 3, 3 * (1 - share) ** 2 * share, 3 * (1 - share) * share**2, share**3]
    middle = (y + to_y) / 2
    return (
        sum(weight * at for weight, at in zip(weights, (x, x, to_x, to_x), strict=True)),
        sum(weight * at for weight, at in zip(weights, (y, middle, middle, to_y), strict=True)),
    )


def _way(source: str, target: str, places: dict[str, tuple[float, float]]) -> list[str]:
    """The places between, of a line that passes layers."""
    prefix = f"{source}\0{target}\0"
    return sorted((key for key in places if key.startswith(prefix)), key=lambda key: places[key][1])


def _layers(provenance: Provenance) -> tuple[list[list[str]], dict[str, tuple[float, float]]]:
    """Nodes by layers, and where each stands.

    Each is one below the lowest of what went into it; a long arrow has an invisible place in each layer that it passes.
    Neighbours are ordered by the mean place of what they are joined with (Sugiyama's way), some times up and down.
    """
    joined = {(edge.source, edge.target) for edge in provenance.edges}
    depth: dict[str, int] = {}

    def depth_of(key: str) -> int:
        if key not in depth:
            depth[key] = 0  # of a circle, the first one met
            depth[key] = max((depth_of(source) + 1 for source, target in joined if target == key), default=0)
        return depth[key]

    for key in provenance.nodes:
        depth_of(key)
    # What nothing went into stands just above what it went into.
    for key in provenance.nodes:
        targets = [depth[target] for source, target in joined if source == key]
        if targets and not any(target == key for _, target in joined):
            depth[key] = max(min(targets) - 1, 0)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for key in provenance.nodes:
        layers[depth[key]].append(key)
    links: set[tuple[str, str]] = set()
    for source, target in sorted(joined):
        before = source
        for between in range(depth[source] + 1, depth[target]):
            passing = f"{source}\0{target}\0{between}"
            layers[between].append(passing)
            links.add((before, passing))
            before = passing
        links.add((before, target))
    return layers, _placed(layers, links)


def _placed(layers: list[list[str]], links: set[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    near: dict[str, list[str]] = defaultdict(list)
    for one, other in links:
        near[one].append(other)
        near[other].append(one)
    x = {key: _spread(layer)[key] for layer in layers for key in layer}
    for sweep in range(_SWEEPS):
        order = layers if sweep % 2 else layers[::-1]
        for layer in order:
            wanted = {key: sum(x[other] for other in near[key]) / len(near[key]) if near[key] else x[key] for key in layer}
            layer.sort(key=lambda key: wanted[key])
            x.update(_apart(layer, wanted))
    least = min(x.values())
    return {
        key: (x[key] - least + _EDGE, number * (_TALL + _DOWN) + _EDGE)
        for number, layer in enumerate(layers)
        for key in layer
    }


def _room(key: str) -> float:
    return 44 if "\0" in key else _BOX


def _spread(layer: list[str]) -> dict[str, float]:
    at, found = 0.0, {}
    for key in layer:
        found[key] = at
        at += _room(key) + _BETWEEN
    return found


def _apart(layer: list[str], wanted: dict[str, float]) -> dict[str, float]:
    """As near to where each is wanted as boxes that don't overlap can be: pushed right, then shifted back by the mean."""
    found: dict[str, float] = {}
    before: str | None = None
    for key in layer:
        at = wanted[key]
        if before is not None:
            at = max(at, found[before] + (_room(before) + _room(key)) / 2 + _BETWEEN)
        found[key] = at
        before = key
    shift = sum(found[key] - wanted[key] for key in layer) / len(layer) if layer else 0.0
    return {key: at - shift for key, at in found.items()}
