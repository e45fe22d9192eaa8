"""`lantern label purge`: forget a person."""

from pathlib import Path
from typing import Any

from lantern_pl.errors import CommandParser
from lantern_pl.labelling.purge import purge
from lantern_pl.labelling.store_rows import KINDS


def purge_command(argv: list[str]) -> int:
    """Run `lantern label purge ...`. Raises UserError, and SystemExit after help."""
    parser = CommandParser(
        prog="lantern label purge",
        description="Remove a candidate, a job or a pair from label folders: answers, reviews and exported files; and from "
        "predictions and signal sets, where these are given. Its id is remembered as a hash, so that it isn't labelled "
        "again. Files of pairs elsewhere, and models that were trained on them, are yours to deal with.",
        epilog="example: lantern label purge --subject candidate-17 --labels labels/black_box labels/in_house",
    )
    parser.add_argument("--subject", required=True, metavar="ID", help="candidate_id, job_id or pair_id")
    parser.add_argument("--labels", type=Path, required=True, nargs="+", metavar="DIR", help="folders of `lantern label`")
    more: dict[str, Any] = {"type": Path, "nargs": "+", "default": [], "metavar": "DIR"}
    parser.add_argument("--predictions", **more, help="folders of `lantern predict`")
    parser.add_argument(
        "--signals",
        **more,
        help="folders of `lantern cache`, made from such pairs: they know no ids and are deleted whole, to be recorded anew",
    )
    parser.add_argument("--kind", choices=KINDS, help="whose id it is, where a job and a candidate have the same one")
    options = parser.parse_args(argv)
    for folder in options.labels:
        print(f"{folder}: {purge(folder, options.subject, options.kind, options.predictions, options.signals)}")
    return 0
