"""The page's HTML: what is marked, and that a text stays text."""

import re
from html.parser import HTMLParser

import pytest
from review_labels import GOOD, decision, labelled

from lantern_pl.labelling.review.labelled import LabelledPair, Requirement
from lantern_pl.labelling.review.session import Progress, Shown
from lantern_pl.labelling.review.view import escaped, pair_html


class Page(HTMLParser):
    """Texts by the element and its class that they stand in, and what a browser would run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[list[str], dict[str, str], str]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(html)
        self.close()
        assert not self.open, "an element isn't closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.open.append((tag, found))
        self.elements.append((tag, found))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(([tag for tag, _ in self.open], self.open[-1][1] if self.open else {}, data))

    def marks(self) -> list[tuple[str, str, str]]:
        """Class, numbers and text of each mark."""
        return [
            (attributes["class"], attributes["data-quotes"], text)
            for tags, attributes, text in self.texts
            if tags and tags[-1] == "mark"
        ]


def page(pair: LabelledPair | None, **shown: object) -> Page:
    return Page(pair_html(Shown(pair, Progress(all=4, waiting=2, spared=1), **shown), turn=7))


def test_evidence_is_marked_in_the_colour_of_its_verdict() -> None:
    lines = [
        Requirement("Python", "must", "met", "five years of Python"),
        Requirement("Lead", "nice", "partly", "led a team"),
        Requirement("Kafka", "nice", "unmet", None),
    ]
    assert page(labelled("p1", requirements=lines)).marks() == [
        ("met", "1", "five years\nof Python"),
        ("partly", "2", "led a team"),
    ]


def test_overlapping_quotes_are_marked_in_pieces_by_the_worse_verdict() -> None:
    lines = [
        Requirement("Python", "must", "met", "five years of Python"),
        Requirement("Long", "must", "unmet", "Python, and led"),
        Requirement("Same", "must", "partly", "five years"),
    ]
    assert page(labelled("p1", requirements=lines)).marks() == [
        ("partly", "1 3", "five years"),
        ("met", "1", "\nof "),
        ("unmet", "1 2", "Python"),
        ("unmet", "2", ", and led"),
    ]


def test_each_requirement_is_listed_with_verdict_and_evidence() -> None:
    lines = [*GOOD.requirements, Requirement("Java", "must", "met", "ten years of Java"), Requirement("He is nice.")]
    html = pair_html(Shown(labelled("p1", requirements=lines), Progress(1, 1, 0)), 1)
    items = re.findall(r"<li .*?</li>", html)
    assert len(items) == 4
    assert 'class="met" data-quote="1"' in items[0]
    assert "✓ met" in items[0]
    assert "<q>five years of Python</q>" in items[0]
    assert "not in the text" not in items[0]
    assert "✗ unmet" in items[1]
    assert "<q>" not in items[1]
    assert "not in the text" in items[2]
    assert "data-quote" not in items[2]
    assert 'class="none"' in items[3]
    assert "He is nice." in items[3]


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "</p></div><iframe src=javascript:alert(1)>",
    "&lt;script&gt; &amp; &#60;b&#62;",
    "${alert(1)} {{constructor}} @children",
    "<!-- <b> -->",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_stays_text_wherever_it_comes_from(text: str) -> None:
    hostile = LabelledPair(
        pair_id=text,
        job_id=text,
        candidate_id=text,
        job_text=f"job {text}",
        candidate_text=f"before {text} after",
        level=text,
        explanation=text,
        votes={text: 2.0},
        confidence=0.5,
        requirements=[Requirement(text, text, text, text), Requirement(text, text, "met", f"not {text}")],
        flags=[text],
        teacher=text,
    )
    said = decision(text, text, "edit", text, note=text)
    shown = page(hostile, own=said, others=[said])
    harmless = page(GOOD, own=decision("p1", "ann", "accept"), others=[decision("p1", "ben", "reject")])
    assert {tag for tag, _ in shown.elements} <= {tag for tag, _ in harmless.elements}
    attributes = {name for _, found in shown.elements for name in found}
    assert attributes <= {name for _, found in harmless.elements for name in found}
    assert all(found.get("style") in (None, "width:33.33%") for _, found in shown.elements)
    texts = "".join(data for _, _, data in shown.texts)
    assert texts.count(text) >= 9
    (review,) = [found for _, found in shown.elements if "data-pair" in found]
    assert (review["data-pair"], review["data-level"], review["data-explanation"]) == (text, text, text)


def test_hidden_characters_are_named_and_those_of_scripts_and_emoji_stay() -> None:
    for character, code in (("\u202e", "202E"), ("\u200b", "200B"), ("\x00", "0000"), ("\x01", "0001")):
        assert escaped(f"a{character}b") == f'a<span class="hidden-character">U+{code}</span>b'
    for text in ("a\tb\nc", "👩\u200d💻", "می\u200cخواهم", "naïve Straße 東京"):
        assert escaped(text) == text


def test_the_head_says_where_the_reviewer_is_and_what_was_said() -> None:
    shown = page(
        labelled("p1", flags=["bidi control"]),
        own=decision("p1", "ann", "edit", "high"),
        others=[decision("p1", "ben", "reject", note="too little")],
    )
    said = " ".join(data for _, _, data in shown.texts)
    for part in ("1 of 3 decided, 1 more accepted by rules", "confidence 0.90", "Votes: medium 4, high 1", "⚠ bidi control"):
        assert part in said
    assert "You: edited as high" in said
    assert "⇄ ben: rejected (“too little”)" in said


def test_a_label_with_little_is_shown_with_little() -> None:
    bare = labelled("p1", requirements=[], votes=None, confidence=None, explanation=None)
    said = " ".join(data for _, _, data in page(bare).texts)
    assert "The teacher gave none." in said
    assert "confidence" not in said
    assert "Votes" not in said


def test_the_end_is_shown() -> None:
    assert any("All decided" in data for _, _, data in page(None).texts)
