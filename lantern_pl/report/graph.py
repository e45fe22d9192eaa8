"""A graph of what was made from what."""

from dataclasses import dataclass, field
from typing import Any

from lantern_pl.report.identities import Compared, State

STUDENT, MODEL, TEACHER, LABELS, SEED, PAIRS, SIGNALS = "student", "model", "teacher", "labels", "seed", "pairs", "signals"


@dataclass
class Node:
    """Something that others were made from. `facts` are short texts, the most important first."""

    key: str
    kind: str
    title: str
    where: str = ""
    facts: list[str] = field(default_factory=list)
    missing: bool = False
    run: str | None = None
    """The name of the run that the report is about, if this is its student."""
    check: Compared | None = None
    """Whether its files are those that its own manifest speaks of, and why that is thought."""
    about: dict[str, Any] = field(default_factory=dict)
    """Numbers for the table of costs."""


@dataclass
class Edge:
    """`source` went into `target`: how, whether it's still the same, and why that is thought."""

    source: str
    target: str
    relation: str
    state: State
    why: str


@dataclass
class Provenance:
    """The graph of all that the runs came from. Nodes are in the order in which they were found, students first."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def into(self, key: str) -> list[Edge]:
        return [edge for edge in self.edges if edge.target == key]

    def faults(self) -> list[tuple[str, State, str]]:
        """What has changed or is missing: what it is about, which of both, and why that is thought."""
        of_nodes = [(node.title, *node.check) for node in self.nodes.values() if node.check]
        of_edges = [(f"{self.nodes[e.source].title} → {self.nodes[e.target].title}", e.state, e.why) for e in self.edges]
        return [fault for fault in (*of_nodes, *of_edges) if fault[1] in ("changed", "missing")]
