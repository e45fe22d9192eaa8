from typing import Any

import pytest
from pydantic import ValidationError

from lantern_pl.errors import UserError
from lantern_pl.tasks.guide import Guide
from lantern_pl.tasks.schema import check_output, form, json_schema, model_of, quotes
from lantern_pl.tasks.stage import Stage

LEVELS = ["low", "medium", "high"]


def stage(output: Any, reads: tuple[str, ...] = ("job_text", "candidate_text")) -> Stage:
    return Stage("asked", list(reads), [], "?", output)


def takes(output: Any, value: Any) -> bool:
    try:
        model_of(stage(output), LEVELS).model_validate(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("text", ["ok", "ü", "東", "x" * 4000, " 1 "], ["", " \n", "...", "x" * 4001, 1, None, True, ["ok"]]),
        ("level", LEVELS, ["High", "high ", "", "low|high", 1, None]),
        ("share", [0, 1, 0.5, 1.0, 1e-9], [-0.01, 1.01, "0.5", True, None, float("nan"), float("inf"), [0.5]]),
        ("met | partly | unmet", ["met", "unmet"], ["Met", "met | partly", "", None, 0]),
        ("a|b", ["a", "b"], ["a|b", " a"]),
        ("quote of candidate_text", ["some words", "x" * 1000], [None, 3, "x" * 1001]),
        ({"list": {"a": "text"}}, [[], [{"a": "x"}], [{"a": "x"}] * 64], [[{"a": "x"}] * 65, {}, None, [{}], ["x"], "x"]),
        ({"list": {"a": "text"}, "at_most": 2}, [[{"a": "x"}] * 2], [[{"a": "x"}] * 3]),
        (
            {"list": {"a": {"list": {"b": "share"}}}},
            [[{"a": [{"b": 1}]}]],
            [[{"a": [{"b": 2}]}], [{"a": [{"b": 1, "c": 1}]}]],
        ),
    ],
)
def test_kinds(kind: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not takes({"field": kind}, {"field": value})] == []
    assert [value for value in bad if takes({"field": kind}, {"field": value})] == []


def test_all_fields_and_no_others() -> None:
    output = {"one": "text", "two": "share"}
    assert takes(output, {"two": 1, "one": "x"})
    assert not takes(output, {"one": "x"})
    assert not takes(output, {"one": "x", "two": 1, "three": 1})
    assert not takes(output, {"one": "x", "two": 1, "": 1})


@pytest.mark.parametrize(
    "output",
    [
        {"a": "texts"},
        {"a": "one word |"},
        {"a": "a | a"},
        {"a": ""},
        {"a": None},
        {"a": 1},
        {"a": ["text"]},
        {"a": {}},
        {"a": {"list": "text"}},
        {"a": {"list": {}}},
        {"a": {"list": {"b": "texts"}}},
        {"a": {"list": {"b": "text"}, "at_most": 0}},
        {"a": {"list": {"b": "text"}, "at_most": 65}},
        {"a": {"list": {"b": "text"}, "at_most": True}},
        {"a": {"list": {"b": "text"}, "at_least": 1}},
        {"a": "quote of facts"},
        {"a": "quote of candidate_text unless b = x"},
        {"a": "quote of candidate_text unless b = z", "b": "x | y"},
        {"a": "quote of candidate_text unless b = x", "b": "text"},
        {"a": {"list": {"c": "quote of candidate_text unless b = x"}}, "b": "x | y"},
        {"A": "text"},
        {"a b": "text"},
        {"": "text"},
        {True: "text"},
        {"model_config": "text"},
        {"copy": "text"},
        {"_a": "text"},
    ],
)
def test_outputs_that_cannot_be_asked_for(output: Any) -> None:
    with pytest.raises(UserError, match=r"guide\.stages: asked\.output"):
        check_output(stage(output))


def test_a_quote_is_of_what_the_stage_reads_itself() -> None:
    check_output(stage({"a": "quote of job_text"}))
    with pytest.raises(UserError, match="it reads no text"):
        check_output(stage({"a": "quote of job_text"}, reads=("facts",)))
    with pytest.raises(UserError, match="quote candidate_text"):
        check_output(stage({"a": "quote of job_text"}, reads=("facts", "candidate_text")))


def parts(schema: Any) -> list[dict[str, Any]]:
    below = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return [schema, *(part for child in below for part in parts(child))]


@pytest.mark.parametrize("stages", ["decomposed", "single"])
def test_json_schemas_are_what_servers_take(stages: Any) -> None:
    for asked in Guide(stages=stages).plan(LEVELS):
        schema = json_schema(model_of(asked, LEVELS))
        assert list(schema["properties"]) == list(asked.output)
        for part in parts(schema):
            assert set(part) <= {"type", "properties", "required", "additionalProperties", "items", "enum", "maxItems"}
            assert part["type"] in ("object", "array", "string", "number")
            if part["type"] == "object":
                assert part["additionalProperties"] is False
                assert part["required"] == list(part["properties"])


def test_the_schema_of_the_judgement() -> None:
    schema = json_schema(model_of(Guide().plan(LEVELS)[2], LEVELS))
    item = {
        "type": "object",
        "properties": {
            "requirement": {"type": "string"},
            "verdict": {"type": "string", "enum": ["met", "partly", "unmet"]},
            "evidence": {"type": "string"},
        },
        "required": ["requirement", "verdict", "evidence"],
        "additionalProperties": False,
    }
    assert schema["properties"] == {
        "requirements": {"type": "array", "items": item, "maxItems": 64},
        "level": {"type": "string", "enum": LEVELS},
        "confidence": {"type": "number"},
    }


def test_fields_may_bear_the_schema_language_s_words() -> None:
    output = {"title": "text", "type": "a | b", "items": {"list": {"properties": "text", "required": "share"}}}
    schema = json_schema(model_of(stage(output), LEVELS))
    assert list(schema["properties"]) == ["title", "type", "items"]
    assert list(schema["properties"]["items"]["items"]["properties"]) == ["properties", "required"]


def test_the_form_in_words() -> None:
    (single,) = Guide(stages="single").plan(LEVELS)
    assert form(single.output, LEVELS, {"candidate_text": "CV"}) == (
        '{"requirements": [{"requirement": "...", "kind": "must" | "nice", "verdict": "met" | "partly" | "unmet", '
        '"evidence": "<exact quote of the CV, or empty if verdict is unmet>"}, ...], '
        '"level": "low" | "medium" | "high", "confidence": <number from 0 to 1>, "explanation": "..."}'
    )


def test_models_differ_by_levels_and_order_of_fields() -> None:
    assert model_of(stage({"a": "level"}), LEVELS) is model_of(stage({"a": "level"}), LEVELS)
    assert model_of(stage({"a": "level"}), LEVELS) is not model_of(stage({"a": "level"}), LEVELS[:2])
    assert list(json_schema(model_of(stage({"b": "text", "a": "text"}), LEVELS))["properties"]) == ["b", "a"]


def test_quotes_are_found_wherever_they_are_declared() -> None:
    output = {
        "top": "quote of job_text",
        "list_": {
            "list": {
                "evidence": "quote of candidate_text unless verdict = no",
                "verdict": "yes | no",
                "more": {"list": {"said": "quote of candidate_text unless rank = low", "rank": "level"}},
            }
        },
    }
    parsed = {
        "top": "t",
        "list_": [
            {"evidence": "e1", "verdict": "yes", "more": [{"said": "s1", "rank": "high"}, {"said": " ", "rank": "low"}]},
            {"evidence": "", "verdict": "no", "more": []},
            {"evidence": "e2", "verdict": "no", "more": [{"said": "", "rank": "high"}]},
            {"evidence": "", "verdict": "yes", "more": []},
        ],
    }
    check_output(stage(output))
    assert list(quotes(stage(output), parsed)) == [
        ("job_text", "t"),
        ("candidate_text", "e1"),
        ("candidate_text", "s1"),
        ("candidate_text", "e2"),
        ("candidate_text", ""),
        ("candidate_text", ""),
    ]
