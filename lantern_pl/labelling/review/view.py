"""The page's HTML for one pair. All that comes from the labels is escaped here."""

import html
import re
from collections.abc import Sequence
from itertools import pairwise

from lantern_pl.labelling.review.labelled import LabelledPair, Requirement
from lantern_pl.labelling.review.quotes import Span, find_quote, plain
from lantern_pl.labelling.review.session import Progress, Shown
from lantern_pl.labelling.store import Decision

SIGNS = {"met": "✓", "partly": "~", "unmet": "✗"}
"""Verdict -> what tells it from the others without a colour; the stronger concern last."""

# Characters that show as nothing or turn what follows: named in their place, so that nobody judges a text unseen.
# Joiners that scripts and emoji need aren't among them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def escaped(text: str) -> str:
    """Text as HTML that shows it as it is, hidden characters by their numbers."""
    named = _HIDDEN.sub(lambda match: f"\x00{ord(match[0]):04X}\x01", text)
    return re.sub("\x00([0-9A-F]+)\x01", r'<span class="hidden-character">U+\1</span>', html.escape(named))


def pair_html(shown: Shown, turn: int) -> str:
    """Everything about a pair but the form: where the reviewer is, what was said, the texts, the requirements.

    turn: another number each time, by which the page's script knows that the next pair is there.
    """
    if shown.pair is None:
        return f'<div class="review done" data-turn="{turn}">{_progress(shown.progress)}{_all_done(shown.progress)}</div>'
    pair = shown.pair
    found = [find_quote(pair.candidate_text, line.evidence) if line.evidence else None for line in pair.requirements]
    label = f'data-level="{escaped(pair.level)}" data-explanation="{escaped(pair.explanation or "")}"'
    return (
        f'<div class="review" data-turn="{turn}" data-pair="{escaped(pair.pair_id)}" {label}>'
        f"{_progress(shown.progress)}{_about(shown)}"
        '<div class="panes">'
        f"{_pane('job', 'Job', escaped(plain(pair.job_text)))}"
        f"{_pane('candidate', 'Candidate', _marked(pair, found))}"
        f"{_pane('requirements', 'Requirements', _requirements(pair.requirements, found), 'div')}"
        "</div></div>"
    )


def _pane(name: str, title: str, content: str, tag: str = "p") -> str:
    # dir=auto: a text in a right-to-left script reads as such, and turns nothing outside its pane.
    return (
        f'<section class="pane {name}" aria-label="{title}"><h2>{title}</h2>'
        f'<div class="scroll" tabindex="0"><{tag} dir="auto">{content}</{tag}></div></section>'
    )


def _progress(progress: Progress) -> str:
    todo = progress.all - progress.spared
    share = progress.done / todo if todo else 1.0
    behind = f", {progress.spared} more accepted by rules" if progress.spared else ""
    return (
        f'<div class="progress" role="progressbar" aria-valuemax="{todo}" aria-valuenow="{progress.done}">'
        f'<span class="bar"><span style="width:{share:.2%}"></span></span>'
        f'<span class="count">{progress.done} of {todo} decided{behind}</span></div>'
    )


def _all_done(progress: Progress) -> str:
    return (
        '<div class="finish"><h2>All decided</h2>'
        f"<p>{progress.done} of {progress.all} pairs are decided. Go back with <kbd>p</kbd>, or end the review with Ctrl-C "
        "in the terminal: the seed is written then.</p></div>"
    )


def _about(shown: Shown) -> str:
    pair = shown.pair
    assert pair is not None
    facts = [f'<span class="id">{escaped(pair.pair_id)}</span>']
    said = f'Teacher: <b class="level">{escaped(pair.level)}</b>'
    if pair.confidence is not None:
        said += f", confidence {pair.confidence:.2f}"
    facts.append(f"<span>{said}</span>")
    if pair.votes:
        votes = ", ".join(f"{escaped(level)} {count:.3g}" for level, count in pair.votes.items() if count)
        facts.append(f'<span class="votes">Votes: {votes}</span>')
    facts += [f'<span class="flag">⚠ {escaped(flag)}</span>' for flag in pair.flags]
    if shown.own is not None:
        facts.append(f'<span class="own">You: {_said(shown.own)}</span>')
    facts += [f'<span class="other">⇄ {escaped(other.reviewer)}: {_said(other)}</span>' for other in shown.others]
    return f'<div class="about">{"".join(facts)}</div>'


def _said(decision: Decision) -> str:
    what = {"accept": "accepted", "edit": "edited", "reject": "rejected"}[decision.verdict]
    level = f" as {escaped(decision.level)}" if decision.level else ""
    return f"{what}{level}" + (f" (“{escaped(decision.note)}”)" if decision.note else "")


def _marked(pair: LabelledPair, found: Sequence[Span | None]) -> str:
    """The candidate's text with the found quotes marked: by the numbers of their requirements and the worst verdict."""
    text = plain(pair.candidate_text)
    edges = sorted({0, len(text), *(edge for span in found if span for edge in span)})
    parts = []
    begun: set[int] = set()
    for start, end in pairwise(edges):
        inside = [number for number, span in enumerate(found, start=1) if span and span[0] <= start and end <= span[1]]
        piece = escaped(text[start:end])
        if inside:
            verdict = _worst([pair.requirements[number - 1] for number in inside])
            # Of a quote in several pieces, the first bears the number.
            starts = "".join(f"<sup>{number}</sup>" for number in inside if number not in begun)
            begun.update(inside)
            quotes = " ".join(map(str, inside))
            piece = f'<mark class="{verdict}" data-quotes="{quotes}">{starts}{piece}</mark>'
        parts.append(piece)
    return "".join(parts)


def _worst(lines: Sequence[Requirement]) -> str:
    order = list(SIGNS)
    return max((_verdict(line) for line in lines), key=lambda verdict: order.index(verdict) if verdict in order else -1)


def _verdict(line: Requirement) -> str:
    return line.verdict if line.verdict in SIGNS else "none"


def _requirements(lines: Sequence[Requirement], found: Sequence[Span | None]) -> str:
    if not lines:
        return '<p class="empty">The teacher gave none.</p>'
    items = []
    for number, (line, span) in enumerate(zip(lines, found, strict=True), start=1):
        verdict = _verdict(line)
        said = [f'<span class="what">{escaped(line.requirement)}</span>'] if line.requirement else []
        if line.kind:
            said.append(f'<span class="kind">{escaped(line.kind)}</span>')
        if line.verdict:
            said.append(f'<span class="verdict">{SIGNS.get(line.verdict, "")} {escaped(line.verdict)}</span>')
        if line.evidence:
            missing = "" if span else '<span class="missing">not in the text</span>'
            said.append(f"<q>{escaped(line.evidence)}</q>{missing}")
        quote = f' data-quote="{number}" title="Show in the text"' if span else ""
        items.append(f'<li class="{verdict}"{quote}><span class="number">{number}</span>{" ".join(said)}</li>')
    return f"<ol>{''.join(items)}</ol>"
