"""Findings and tables on the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lantern_pl.audit.config import AuditConfig
from lantern_pl.audit.findings import Finding, Table

_MAX_ROWS = 30
_SHOWN = 12
_STYLES = {"flag": "bold red", "insufficient data": "yellow", "clear": "green"}


def show(console: Console, findings: Sequence[Finding], tables: Sequence[Table], config: AuditConfig) -> None:
    """Print everything; of long tables the rows with the smallest p, where a file has the rest."""
    for table in tables:
        console.print(_rich(table, config.out))
    for kind, style in _STYLES.items():
        of_kind = [each for each in findings if each.kind == kind]
        # Where a file has the reasons, the terminal names what isn't a flag.
        if of_kind and config.out and kind != "flag":
            names = "; ".join(each.about for each in of_kind)
            console.print(Text.assemble((f"{kind}: ", style), names))
            continue
        for each in of_kind:
            console.print(Text.assemble((f"{kind}: ", style), (f"{each.about}. ", "bold"), each.text))
    counts = {kind: sum(each.kind == kind for each in findings) for kind in _STYLES}
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items()))


def _rich(table: Table, out: str | None) -> RichTable:
    rows, more = list(table.rows), ""
    if out and len(rows) > _MAX_ROWS and "p" in table.columns:
        p = list(table.columns).index("p")
        rows = sorted(rows, key=lambda row: _number(row[p]))[:_SHOWN]
        more = f"The {_SHOWN} rows of {len(table.rows)} with the smallest p; all are in {out}. "
    shown = RichTable(
        box=box.SIMPLE_HEAD, title=Text(table.title), title_justify="left", caption=Text(more + table.note),
        caption_justify="left", show_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for number, name in enumerate(table.columns):
        texts = any(isinstance(row[number], str) for row in rows)
        shown.add_column(name, justify="left" if texts else "right", min_width=None if texts else 6)
    for row in rows:
        shown.add_row(*(Text(_cell(cell)) for cell in row))
    return shown


def _number(cell: str | float | None) -> float:
    return cell if isinstance(cell, int | float) else 1.0


def _cell(cell: str | float | None) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, int) or (cell.is_integer() and abs(cell) > 1):
        return f"{cell:.0f}"
    return f"{cell:.3f}".replace("-0.000", "0.000")
