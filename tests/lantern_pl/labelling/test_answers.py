"""Answers that aren't exactly answers: hundreds of each kind, made from good ones."""

import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from lantern_pl.data.sample import make_pairs
from lantern_pl.labelling.answers import (
    MAX_ANSWER,
    REASONS,
    BadAnswer,
    check_quotes,
    read_answer,
    repair_messages,
)
from lantern_pl.labelling.evidence import is_verbatim
from lantern_pl.tasks.guide import Guide, compact
from lantern_pl.tasks.stage import Stage

LEVELS = ["low", "medium", "high"]
(STAGE,) = Guide(stages="single").plan(LEVELS)
PAIRS = make_pairs(60, seed=1)
COUNT = 300

Fields = dict[str, Any]


def texts(row: Fields) -> dict[str, str]:
    return {"job_text": row["job_text"], "candidate_text": row["candidate_text"]}


def good(rng: Random) -> tuple[Fields, Fields]:
    """A pair and a good answer about it."""
    row = rng.choice(PAIRS)
    words = row["candidate_text"].split()
    requirements = []
    for number in range(rng.randint(1, 6)):
        verdict = rng.choice(["met", "partly", "unmet"])
        start = rng.randrange(len(words) - 4)
        evidence = "" if verdict == "unmet" else " ".join(words[start : start + rng.randint(2, 4)])
        kind = rng.choice(["must", "nice"])
        requirements.append({"requirement": f"Skill {number}", "kind": kind, "verdict": verdict, "evidence": evidence})
    requirements.append({"requirement": "Last", "kind": "must", "verdict": "met", "evidence": " ".join(words[:3])})
    answer = {
        "requirements": requirements,
        "level": rng.choice(LEVELS),
        "confidence": rng.choice([0, 1, 0.25, 0.8]),
        "explanation": f"Meets {len(requirements)} things: “{' '.join(words[:4])}”, 'so', {rng.random()}.",
    }
    return row, answer


def read(
    text: str, row: Fields, strict: bool, finish_reason: str = "stop", stage: Stage = STAGE, **answers: Fields
) -> Fields:
    shown = texts(row) | {name: compact(answer) for name, answer in answers.items()}
    return read_answer(text, finish_reason, stage, LEVELS, shown, strict)


def reason(text: str, row: Fields, strict: bool, finish_reason: str = "stop") -> str:
    with pytest.raises(BadAnswer) as raised:
        read(text, row, strict, finish_reason)
    assert raised.value.reason in REASONS
    assert str(raised.value) == raised.value.reason
    return raised.value.reason


Spoil = Callable[[Random, Fields, Fields], str]
KINDS: dict[str, tuple[Spoil, set[str]]] = {}


def spoils(*reasons: str, strict_only: bool = False) -> Callable[[Spoil], Spoil]:
    def register(spoil: Spoil) -> Spoil:
        KINDS[spoil.__name__] = (spoil, {*reasons, *({"strict only"} if strict_only else ())})
        return spoil

    return register


def item(rng: Random, answer: Fields) -> Fields:
    return rng.choice(answer["requirements"])


def inserted(rng: Random, text: str, what: str) -> str:
    place = rng.randint(1, len(text) - 1)
    return text[:place] + what + text[place:]


@spoils("truncated", "broken JSON", "no JSON object")
def truncated(rng: Random, answer: Fields, row: Fields) -> str:
    text = json.dumps(answer)
    return text[: rng.randrange(len(text))]


@spoils("truncated", "broken JSON", "no JSON object", "more than a JSON object", "several JSON objects")
def beginning_lost(rng: Random, answer: Fields, row: Fields) -> str:
    text = json.dumps(answer)
    # The remainder of an answer is none, whatever objects are in it.
    return text[rng.randint(1, len(text) - 1) :]


@spoils("more than a JSON object", strict_only=True)
def fenced(rng: Random, answer: Fields, row: Fields) -> str:
    return f"```{rng.choice(['json', '', 'JSON'])}\n{json.dumps(answer)}\n```"


@spoils("more than a JSON object", strict_only=True)
def amid_prose(rng: Random, answer: Fields, row: Fields) -> str:
    before, after = rng.choice([("Here it is:\n", ""), ("", "\nHope this helps!"), ("Sure! ", " Done."), (". ", "")])
    return f"{before}{json.dumps(answer)}{after}"


@spoils("broken code fence", "more than a JSON object")
def broken_fence(rng: Random, answer: Fields, row: Fields) -> str:
    text = json.dumps(answer)
    return rng.choice(
        [
            f"```json\n{text}",
            f"{text}\n```",
            f"```json\n{text}\n``",
            f"```python\n{text}\n```",
            f"```json\nanswer = {text}\n```",
            f"```json\n{text}\nThat's it.\n```",
            f"```\n```json\n{text}\n```",
            f"```json\n{text}\n```\n```",
        ]
    )


@spoils("wrong fields")
def extra_keys(rng: Random, answer: Fields, row: Fields) -> str:
    name = rng.choice(["score", "Level", "levels", "level ", "reasoning", "", "__class__", "x" * 50])
    rng.choice([answer, item(rng, answer)])[name] = rng.choice(["high", 1, None, [], {}])
    return json.dumps(answer)


@spoils("wrong fields")
def missing_keys(rng: Random, answer: Fields, row: Fields) -> str:
    holder = rng.choice([answer, item(rng, answer)])
    del holder[rng.choice(sorted(holder))]
    return json.dumps(answer)


@spoils("not a number")
def not_a_number(rng: Random, answer: Fields, row: Fields) -> str:
    answer["confidence"] = 0.123456789
    number = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 400, "1" * 5000, "1.5e309"])
    return json.dumps(answer).replace("0.123456789", number)


@spoils("broken JSON")
def number_of_no_json(rng: Random, answer: Fields, row: Fields) -> str:
    answer["confidence"] = 0.123456789
    number = rng.choice(["nan", "inf", "+0.5", ".5", "0x1", "1_0", "00.5", "0,5", "½", "high", "'0.5'", "80%", "None", "٠"])
    return json.dumps(answer, ensure_ascii=False).replace("0.123456789", number)


@spoils("out of range")
def share_out_of_range(rng: Random, answer: Fields, row: Fields) -> str:
    answer["confidence"] = rng.choice([80, 1.0001, -0.1, -1, 2, 1e300, 100])
    return json.dumps(answer)


@spoils("duplicate keys")
def duplicate_keys(rng: Random, answer: Fields, row: Fields) -> str:
    holder = rng.choice([answer, item(rng, answer)])
    name = rng.choice(sorted(holder))
    again = f'"{name}": {json.dumps(holder[name] if rng.random() < 0.5 else "high")}'
    if rng.random() < 0.3:
        again = again.replace(name[0], f"\\u{ord(name[0]):04x}", 1)
    whole = json.dumps(holder)
    spoilt = rng.choice([f"{{{again}, {whole[1:]}", f"{whole[:-1]}, {again}}}"])
    return spoilt if holder is answer else json.dumps(answer).replace(whole, spoilt, 1)


@spoils("wrong level")
def wrong_level(rng: Random, answer: Fields, row: Fields) -> str:
    answer["level"] = rng.choice(
        ["High", "HIGH", "high ", " low", "very high", "", "low|high", "hıgh", "ｈｉｇｈ", 3, None, ["high"]]
    )
    return json.dumps(answer, ensure_ascii=rng.random() < 0.5)


@spoils("wrong word")
def wrong_word(rng: Random, answer: Fields, row: Fields) -> str:
    item(rng, answer)[rng.choice(["verdict", "kind"])] = rng.choice(["Met", "yes", "", "must|nice", "high", None, 1])
    return json.dumps(answer)


@spoils("wrong type", "wrong fields", "wrong level", "wrong word")
def wrong_types(rng: Random, answer: Fields, row: Fields) -> str:
    holder = rng.choice([answer, item(rng, answer)])
    name = rng.choice(sorted(holder))
    wrong: list[Any] = [None, True, {}, {"a": 1}, [["x"]], "0.5" if name == "confidence" else 0.5, [None], ["x"]]
    holder[name] = rng.choice(wrong)
    return json.dumps(answer)


@spoils("wrong type", "wrong fields", "more than a JSON object", "no JSON object", "broken JSON", "several JSON objects")
def no_object(rng: Random, answer: Fields, row: Fields) -> str:
    text = json.dumps(answer)
    return rng.choice(
        [
            "",
            " \n",
            "high",
            '"high"',
            "null",
            "0.8",
            "[]",
            f"[{text}]",
            json.dumps(text),
            "{}",
            text[1:-1],
            f"({text}]",
            f"{text}}}",
        ]
    )


@spoils("several JSON objects")
def several_objects(rng: Random, answer: Fields, row: Fields) -> str:
    text = json.dumps(answer)
    other = rng.choice([text, "{}", '{"level": "high"}', json.dumps(good(rng)[1])])
    return text + rng.choice(["", "\n", ", ", " or rather ", "\n```json\n"]) + other


@spoils("too long")
def huge(rng: Random, answer: Fields, row: Fields) -> str:
    which = rng.randrange(5)
    if which == 0:
        answer["explanation"] = "very " * rng.randint(801, 5000)
    elif which == 1:
        answer["requirements"] = answer["requirements"] * 65
    elif which == 2:
        item(rng, answer)["requirement"] = "x" * rng.randint(4001, 9000)
    elif which == 3:
        answer["explanation"] = "x" * MAX_ANSWER
    elif which == 4:
        item(rng, answer).update(verdict="met", evidence=row["candidate_text"] * 20)
    return json.dumps(answer) + " " * (MAX_ANSWER if rng.random() < 0.1 else 0)


HIDDEN = [*"\u200b\u200c\u200d\u2060\ufeff\xad\u202a\u202e\u2066\u2069\u200e\u061c\u3164\U000e0041\ufe0f\x9b"]


@spoils("hidden characters")
def hidden_characters(rng: Random, answer: Fields, row: Fields) -> str:
    return inserted(rng, json.dumps(answer), rng.choice(HIDDEN))


@spoils("hidden characters")
def escaped_hidden_characters(rng: Random, answer: Fields, row: Fields) -> str:
    hidden = rng.choice([*HIDDEN, "\x00", "\x1b", "\x08", "\ud800", "\udfff"])
    where = rng.choice(
        [(answer, "explanation"), (item(rng, answer), "requirement"), (answer["requirements"][-1], "evidence")]
    )
    where[0][where[1]] = inserted(rng, where[0][where[1]], hidden)
    return json.dumps(answer)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I cannot assist with evaluating candidates.",
    "I cannot comply with this request.",
    "As an AI language model, I can't judge people.",
    "Sorry, I am unable to provide an assessment of this person.",
    "I apologize, but I won't be able to assist.",
    "Unfortunately, I can't process this resume.",
    "I must decline this request.",
    "I am not able to rate candidates.",
    "I don't feel comfortable judging this person.",
    "I'm afraid I can't do that.",
    "I'm unable to make hiring decisions.",
    "My apologies, I cannot do so.",
    "I won't rate people.",
    "I do not evaluate individuals.",
    "We are not able to share an opinion on candidates.",
    "This request goes against my guidelines.",
    "Making hiring decisions is not something I do.",
    "That's not something I can do.",
    "I'm just an AI, so a recruiter should decide.",
    "I would rather not judge this person.",
    "Cannot comply.",
    "Thank you for asking, but I have to decline.",
    "Your request can't be fulfilled.",
    "I'm sorry. A person should decide this.",
    "As a large language model trained by someone, I do not have opinions.",
    "I respectfully decline.",
    "I could not in good conscience assess anyone.",
    "Es tut mir leid, dabei kann ich nicht helfen.",
]


@spoils("refused", "no JSON object")
def refusal(rng: Random, answer: Fields, row: Fields) -> str:
    return rng.choice(["", "\n", "**"]) + rng.choice(REFUSALS)


@spoils("refused", "more than a JSON object")
def refusal_beside_the_object(rng: Random, answer: Fields, row: Fields) -> str:
    text, refused = json.dumps(answer), rng.choice(REFUSALS)
    return rng.choice([f"{refused}\n{text}", f"{text}\n\n{refused}", f"```json\n{text}\n```\nNote: {refused}"])


@spoils("refused")
def refusal_in_the_form(rng: Random, answer: Fields, row: Fields) -> str:
    answer["explanation"] = rng.choice(REFUSALS) + rng.choice(["", " Please ask a recruiter."])
    return json.dumps(answer)


@spoils("refused")
def refusal_in_a_list(rng: Random, answer: Fields, row: Fields) -> str:
    item(rng, answer)["requirement"] = rng.choice(REFUSALS)
    return json.dumps(answer)


@spoils("evidence isn't in the text")
def invented_words_in_the_explanation(rng: Random, answer: Fields, row: Fields) -> str:
    said = rng.choice(["ten years of COBOL", "I led a fleet of ships.", "ran it ... for nine winters at sea"])
    opening, closing = rng.choice(['""', "''", "“”", "‘’", "«»"])
    answer["explanation"] = f"Fits well: {opening}{said}{closing} is what the candidate says."
    return json.dumps(answer)


@spoils("the best level without evidence")
def best_level_without_evidence(rng: Random, answer: Fields, row: Fields) -> str:
    answer["level"] = "high"
    unmet = {"verdict": "unmet", "evidence": rng.choice(["", " ".join(row["candidate_text"].split()[:3])])}
    answer["requirements"] = [given | unmet for given in answer["requirements"][: rng.randrange(4)]]
    return json.dumps(answer)


@spoils("evidence isn't in the text")
def evidence_elsewhere(rng: Random, answer: Fields, row: Fields) -> str:
    words = row["candidate_text"].split()
    start = rng.randrange(len(words) - 4)
    quote = " ".join(words[start : start + 4])
    answer["requirements"].append(
        {
            "requirement": "More",
            "kind": "must",
            "verdict": rng.choice(["met", "partly"]),
            "evidence": rng.choice(
                [
                    "ten years of COBOL at sea",
                    "not found",
                    "N/A",
                    "",
                    " ",
                    "...",
                    words[0][0],
                    quote.swapcase(),
                    f"{words[start]} ... {words[start + 3]}",
                    f'"{quote}"',
                    quote.replace(" ", ""),
                    f"{words[start + 3]} {words[start]} {words[start + 1]}",
                    row["job_text"],
                    f"{quote} zzz",
                    f"q{quote}",
                    row["candidate_text"][1:12] if row["candidate_text"][1].isalnum() else "zzz",
                ]
            ),
        }
    )
    return json.dumps(answer)


@spoils("evidence isn't in the text")
def invented_evidence_for_the_unmet(rng: Random, answer: Fields, row: Fields) -> str:
    item(rng, answer).update(verdict="unmet", evidence=rng.choice(["none", "not mentioned", "-", "no evidence of Kafka"]))
    return json.dumps(answer)


@spoils("blank text", "evidence isn't in the text")
def blank_text(rng: Random, answer: Fields, row: Fields) -> str:
    blank = rng.choice(["", " ", "\n\t", "...", "—", "\u00a0"])
    rng.choice([(answer, "explanation"), (item(rng, answer), "requirement")])
    if rng.random() < 0.5:
        answer["explanation"] = blank
    else:
        item(rng, answer)["requirement"] = blank
    return json.dumps(answer)


@spoils("nested too deep", "wrong type", "too long")
def nested_too_deep(rng: Random, answer: Fields, row: Fields) -> str:
    depth = rng.choice([3, 30, 31, 33, 500, 2000, 15000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    answer["explanation"] = "HERE"
    return json.dumps(answer).replace('"HERE"', opening * depth + "1" + closing * depth)


@spoils("broken JSON", "more than a JSON object", "truncated", "several JSON objects")
def nearly_json(rng: Random, answer: Fields, row: Fields) -> str:
    text = json.dumps(answer)
    return rng.choice(
        [
            text.replace('"', "'"),
            text.replace("}]", "},]"),
            text[:-1] + ",}",
            text.replace('"level"', "level"),
            text.replace(": ", " = "),
            f"/* answer */ {text}".replace("*/ {", "*/ {// x\n"),
            text.replace("Meets", "Meets\n"),
            text.replace("Meets", 'Meets "all"'),
            text.replace("Meets", "Meets \\x41"),
            text.replace("},", "}", 1) if "}," in text else text[:-2],
        ]
    )


def test_the_kinds_are_many() -> None:
    assert len(KINDS) >= 20


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_malformed_answer_is_admitted(kind: str, strict: bool) -> None:
    spoil, allowed = KINDS[kind]
    rng = Random(f"{kind}/{strict}")
    if "strict only" in allowed and not strict:
        for _ in range(COUNT):
            row, answer = good(rng)
            assert read(spoil(rng, answer, row), row, strict=False) == answer
        return
    found = set()
    for _ in range(COUNT):
        row, answer = good(rng)
        found.add(reason(spoil(rng, answer, row), row, strict))
    assert found <= allowed


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("finish_reason", ["length", "content_filter", "tool_calls", "error", "", "STOP"])
def test_an_answer_that_did_not_end_by_itself_is_none(finish_reason: str, strict: bool) -> None:
    row, answer = good(Random(0))
    expected = {"length": "truncated", "content_filter": "refused"}.get(finish_reason, "unfinished")
    assert reason(json.dumps(answer), row, strict, finish_reason) == expected


@pytest.mark.parametrize("strict", [True, False])
def test_good_answers_are_read_whatever_their_white_space_and_escapes(strict: bool) -> None:
    rng = Random(5)
    for _ in range(COUNT):
        row, answer = good(rng)
        text = json.dumps(answer, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1, 4]))
        text = rng.choice(["", "\n", " \r\n\t"]) + text + rng.choice(["", "\n\n", " \t"])
        found = read(text, row, strict)
        assert found == answer
        assert isinstance(found["confidence"], float)


@pytest.mark.parametrize("strict", [True, False])
def test_an_answer_may_be_only_so_long(strict: bool) -> None:
    row, answer = good(Random(1))
    text = json.dumps(answer)
    assert read(text.ljust(MAX_ANSWER), row, strict) == answer
    assert reason(text.ljust(MAX_ANSWER + 1), row, strict) == "too long"


def test_thoughts_before_an_answer_are_left_out() -> None:
    row, answer = good(Random(2))
    text = json.dumps(answer)
    assert read(f"<think>\nMaybe {{high}}? [no]\n</think>\n\n{text}", row, strict=False) == answer
    assert reason(f"<think>x</think>{text}", row, strict=True) == "more than a JSON object"
    assert reason(f"<think>Maybe {{high}} {text}", row, strict=False) == "broken JSON"


def test_words_of_a_refusal_do_not_make_one() -> None:
    row, answer = good(Random(3))
    for said in [
        "The candidate can't answer for five years of Kafka, but meets the rest.",
        "I cannot find Kafka in the text; all else is met.",
        "Unfortunately, Kafka is missing.",
        "Lacks Kafka. Sorry state of documents, yet able to assist customers.",
        "As an AI engineer, the candidate fits.",
        "I can't see Kafka in the text.",
        "I am unable to confirm five years.",
        "It is unclear whether the candidate can't travel.",
        "I would say that the fit is high.",
        "No licence is shown; sorry.",
        "This job can be done.",
        "Making cheese is what the candidate does.",
    ]:
        answer["explanation"] = said
        assert read(json.dumps(answer), row, strict=True)["explanation"] == said


def test_brackets_within_a_text_are_no_nesting() -> None:
    row, answer = good(Random(7))
    answer["explanation"] = 'So "' + "[{" * 40 + '", he says \\'
    assert read(json.dumps(answer), row, strict=True) == answer


def test_writing_that_needs_joiners_is_no_hidden_character() -> None:
    row, answer = good(Random(4))
    for said in ["برنامه‌نویس می‌خواهند", "Team 👨‍👩‍👧 ❤️", "葛󠄀飾区", "क्‍ष", "naïve Straße 東京 😀"]:
        answer["explanation"] = said
        assert read(json.dumps(answer, ensure_ascii=False), row, strict=True)["explanation"] == said
        assert read(json.dumps(answer), row, strict=True)["explanation"] == said


CANDIDATE = (
    "I ran\u00a0Kafka\n  and Java\u00adScript in Cafe\u0301 M\u200büller, C++ (5 years). 東京で働いた。R&D; Postgre-\nSQL"
)


@pytest.mark.parametrize(
    "quote",
    [
        "ran Kafka and JavaScript",
        " ran   Kafka\tand ",
        "Caf\u00e9 Müller",
        "Cafe\u0301 Mu\u0308ller",
        "C++",
        "C++ (5 years)",
        "(5 years).",
        "5 years",
        "東京",
        "働いた",
        "R&D",
        "I ran Kafka and JavaScript in Café Müller, C++ (5 years). 東京で働いた。R&D; Postgre- SQL",
    ],
)
def test_evidence_up_to_white_space_and_composition(quote: str) -> None:
    assert is_verbatim(quote, CANDIDATE)
    check_quotes([("candidate_text", quote)], {"candidate_text": CANDIDATE})


@pytest.mark.parametrize(
    "quote",
    [
        "",
        " ",
        "I",
        "++",
        "(",
        "ran kafka",
        "Java Script",
        "Java",
        "Script",
        "Kaf",
        "ears",
        "Cafe",
        "PostgreSQL",
        "東京だ",
        "5 year",
        "and Java ...",
    ],
)
def test_what_is_no_evidence(quote: str) -> None:
    assert not is_verbatim(quote, CANDIDATE)
    with pytest.raises(BadAnswer, match="evidence isn't in the text"):
        check_quotes([("candidate_text", "ran Kafka"), ("candidate_text", quote)], {"candidate_text": CANDIDATE})


def test_evidence_is_looked_for_in_its_own_text() -> None:
    texts = {"job_text": "Kafka wanted", "candidate_text": "Java known"}
    check_quotes([("job_text", "Kafka wanted"), ("candidate_text", "Java known")], texts)
    with pytest.raises(BadAnswer):
        check_quotes([("candidate_text", "Kafka wanted")], texts)


def test_what_a_person_says_of_themselves_is_no_refusal() -> None:
    row, answer = good(Random(8))
    row = {**row, "candidate_text": row["candidate_text"] + " I am not able to travel."}
    answer["requirements"][0]["requirement"] = "I am not able to travel"
    assert read(json.dumps(answer), row, strict=True) == answer
    answer["explanation"] = "I am not able to travel"
    assert reason(json.dumps(answer), row, strict=True) == "refused"


def test_an_explanation_may_quote_with_its_own_punctuation_and_what_is_asked_for() -> None:
    row, answer = good(Random(9))
    words = row["candidate_text"].split()
    answer["requirements"][0]["requirement"] = "Years of calm at sea"
    for said in [
        f"Says '{' '.join(words[:4]).upper()}.' and more.",
        f"Says “{' '.join(words[:3])} … {' '.join(words[5:8])}”.",
        f'Says "{" ".join(row["job_text"].split()[:4])}", which the job does.',
        "Asked for 'years of calm at sea', and 'not met', 'nice'.",
        "The candidate's team's work isn't 'unmet'.",
    ]:
        answer["explanation"] = said
        assert read(json.dumps(answer), row, strict=True)["explanation"] == said


JUDGED = [
    ([("Python", "met"), ("SQL", "unmet")], None),
    ([(" sql.", "unmet"), ("python", "met")], None),
    ([("Python", "met")], "another list than the given one"),
    ([("Python", "met"), ("SQL", "unmet"), ("Rust", "unmet")], "another list than the given one"),
    ([("Python", "met"), ("SQL", "unmet"), ("SQL", "met")], "another list than the given one"),
    ([("Java", "met"), ("SQL", "unmet")], "another list than the given one"),
    ([], "another list than the given one"),
]


@pytest.mark.parametrize(("judged", "expected"), JUDGED)
def test_a_judge_goes_through_the_requirements_that_were_found(judged: list[tuple[str, str]], expected: str | None) -> None:
    row = PAIRS[0]
    words = " ".join(row["candidate_text"].split()[:3])
    _, _, judge, _ = Guide().plan(LEVELS)
    given = {"requirements": [{"requirement": name, "kind": "must"} for name in ("Python", "SQL")]}
    items = [{"requirement": name, "verdict": said, "evidence": words if said == "met" else ""} for name, said in judged]
    text = json.dumps({"requirements": items, "level": "low", "confidence": 1})
    if expected is None:
        assert read(text, row, strict=True, stage=judge, requirements=given)["level"] == "low"
        return
    with pytest.raises(BadAnswer, match=expected):
        read(text, row, strict=True, stage=judge, requirements=given)


def test_a_stage_of_each_kind_can_be_answered() -> None:
    row = PAIRS[0]
    words = " ".join(row["candidate_text"].split()[:3])
    requirements, facts, judge, explain = Guide().plan(LEVELS)
    for stage, answer in [
        (requirements, {"requirements": [{"requirement": "Python", "kind": "must"}]}),
        (requirements, {"requirements": []}),
        (facts, {"facts": [{"fact": "Speaks", "evidence": words}]}),
        (
            judge,
            {
                "requirements": [{"requirement": "Python", "verdict": "met", "evidence": words}],
                "level": "low",
                "confidence": 1,
            },
        ),
        (
            judge,
            {
                "requirements": [{"requirement": "Python", "verdict": "unmet", "evidence": ""}],
                "level": "low",
                "confidence": 1,
            },
        ),
        (
            judge,
            {"requirements": [{"requirement": "x", "verdict": "unmet", "evidence": words}], "level": "low", "confidence": 1},
        ),
        (explain, {"explanation": "Because."}),
    ]:
        given = {"requirements": [{**said, "kind": "must"} for said in answer.get("requirements", [])]}
        assert read(json.dumps(answer), row, strict=True, stage=stage, requirements=given) == answer
    with pytest.raises(BadAnswer, match="evidence"):
        read(json.dumps({"facts": [{"fact": "Speaks", "evidence": ""}]}), row, strict=True, stage=facts)


def test_a_reason_says_nothing_of_the_answer() -> None:
    row, answer = good(Random(6))
    answer["level"] = answer["CANARY"] = "CANARY"
    with pytest.raises(BadAnswer) as raised:
        read(json.dumps(answer), row, strict=True)
    error: BaseException | None = raised.value
    assert "CANARY" not in str(error)
    # Nor does a traceback.
    assert error is not None
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_has_a_way_to_ask_again(reason: str) -> None:
    (message,) = repair_messages(STAGE, LEVELS, reason)
    assert message["role"] == "user"
    assert reason in message["content"]
    assert '"level": "low" | "medium" | "high"' in message["content"]


@pytest.mark.parametrize(
    "text",
    [
        '"' + '\\"' * 30000,
        '{"' + '\\"' * 30000,
        "{" * 60000,
        "[" * 60000,
        "!" * 60000,
        "sorry " * 10000,
        "i am " * 12000,
        '{"a":' + "1" * 60000 + "}",
        "<think>" * 8000,
        "```" * 20000,
    ],
)
def test_answers_made_to_be_slow_are_not(text: str) -> None:
    start = time.process_time()
    reason(text, PAIRS[0], strict=False)
    assert time.process_time() - start < 3
