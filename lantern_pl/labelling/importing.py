"""`lantern label import`: labels that were made elsewhere, as answers of the teacher that made them."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import has_votes, read_labelled
from lantern_pl.errors import CommandParser
from lantern_pl.labelling.account import Tally
from lantern_pl.labelling.answers import BadAnswer, check_text
from lantern_pl.labelling.evidence import is_verbatim
from lantern_pl.labelling.export import export, show_report, write_report
from lantern_pl.labelling.labels import Label, NoLabel
from lantern_pl.labelling.purge import was_purged
from lantern_pl.labelling.store import Answered, LabelStore
from lantern_pl.tasks import Task

STAGE = "import"


def import_command(argv: list[str]) -> int:
    """Run `lantern label import ...`. Raises UserError, and SystemExit after help."""
    parser = CommandParser(
        prog="lantern label import",
        description="Take over annotated pairs as the labels of the teacher that annotated them: the same folder as "
        "`lantern label` leaves, for lantern review and training. Fields are those of lantern_pl/data/records.py; a list "
        "`evidence` of sentences is kept, with what of it stands verbatim in the candidate's text.",
        epilog="example: lantern label import annotated.jsonl --labels labels/bought --teacher gpt-4o-mini",
    )
    parser.add_argument("file", type=Path, help="annotated pairs: .jsonl, .parquet or a datasets folder")
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="folder for the store and labels.parquet")
    parser.add_argument("--teacher", required=True, metavar="NAME", help="who annotated them")
    parser.add_argument(
        "--levels-only", action="store_true", help="take levels without an explanation too, for students that only classify"
    )
    parser.add_argument("--levels", default=",".join(Task().levels), help="worst first; default: %(default)s")
    options = parser.parse_args(argv)
    task = Task(levels=options.levels.split(","))
    rows = read_labelled(options.file, task)
    began = time.perf_counter()
    tally = Tally(total=len(rows))
    labels: list[Label | NoLabel] = []
    with LabelStore(options.labels) as store:
        rows = [(pair, row) for pair, row in rows if not was_purged(pair, store)]
        waiting = []
        for pair, row in rows:
            answered = _answered(pair, row, options.teacher, options.levels_only)
            if (there := store.get(answered.key)) is None or (there.state, answered.state) == ("quarantined", "ok"):
                waiting.append(store.put(answered, ()))
                tally.asked += 1
            else:
                tally.cached += 1
            if answered.reason:
                tally.quarantined[answered.reason] += 1
            labels.append(_label(pair, answered, has_votes(row)))
        for future in waiting:
            future.result()
        about = {"teacher": {"name": options.teacher, "imported_from": options.file.name}}
        figures = export(options.labels, [pair for pair, _ in rows], labels, task.levels, about)
        report = write_report(options.labels, {STAGE: tally}, time.perf_counter() - began, figures)
    show_report(report, options.labels, Console())
    return 0


def _answered(pair: Pair, row: dict[str, Any], teacher: str, levels_only: bool) -> Answered:
    content = json.dumps([STAGE, teacher, row], sort_keys=True, ensure_ascii=False)
    reason = _fault(pair, levels_only)
    evidence = row.get("evidence") or []
    return Answered(
        key=hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest(),
        stage=STAGE,
        subject=pair.pair_id,
        job_id=pair.job_id,
        candidate_id=pair.candidate_id,
        pair_id=pair.pair_id,
        sample=0,
        state="quarantined" if reason else "ok",
        reason=reason,
        raw="",
        parsed=None
        if reason
        else {
            "level": pair.level,
            "explanation": pair.explanation,
            "votes": pair.level_probs,
            "confidence": row.get("confidence"),
            "evidence": [said for said in evidence if isinstance(said, str)],
        },
        finish_reason="stop",
        prompt_tokens=0,
        completion_tokens=0,
        cost=0.0,
        repairs=0,
        teacher=teacher,
        seconds=0.0,
    )


def _fault(pair: Pair, levels_only: bool) -> str | None:
    """Why a row is no label, if it isn't."""
    if pair.level is None:
        return "no level"
    if not (pair.explanation or "").strip():
        return None if levels_only else "no explanation"
    try:
        check_text(pair.explanation or "", {"job_text": pair.job_text, "candidate_text": pair.candidate_text})
    except BadAnswer as bad:
        return bad.reason
    return None


def _label(pair: Pair, answered: Answered, has_votes: bool) -> Label | NoLabel:
    if answered.parsed is None:
        return NoLabel(f"{STAGE}: {answered.reason}")
    return Label(
        level=answered.parsed["level"],
        explanation=answered.parsed["explanation"],
        # What a pair's confidence was spread to isn't votes: it has a column of its own.
        votes=pair.level_probs if has_votes else None,
        confidence=answered.parsed["confidence"],
        requirements=[
            {
                "requirement": said,
                "kind": "",
                "verdict": "",
                "evidence": said if is_verbatim(said, pair.candidate_text) else "",
            }
            for said in answered.parsed["evidence"]
        ],
    )
