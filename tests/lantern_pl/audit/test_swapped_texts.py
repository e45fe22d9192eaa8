"""Swaps change what they say they change, and nothing else."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from planted import pairs_of

from lantern_pl.audit.swap_lists import BUILT_IN, read_swap_list, variants
from lantern_pl.audit.swaps import contrasts, plan_swaps
from lantern_pl.errors import UserError

GROUP = "{attribute: a, words: {word: [A]}}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_text_without_the_lists_words_gets_one_line(name: str) -> None:
    swap = read_swap_list(name)
    text = "Knows Python.\nLikes rooms with a view."
    told = variants(swap, text, [0] * len(swap.groups), swap.insert[0])
    assert len(set(told)) == len(swap.groups)
    for group, each in zip(swap.groups, told, strict=True):
        line = swap.insert[0].format(**group.words[0])
        assert each == (f"{line}\n{text}" if swap.place == "top" else f"{text}\n{line}")


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_model_that_reads_the_beginning_reads_the_line(name: str) -> None:
    """Where a long text is cut, its end is lost: a line there would change nothing, and be taken for no effect."""
    swap = read_swap_list(name)
    told = variants(swap, "Likes rooms with a view. " * 400, [0] * len(swap.groups), swap.insert[0])
    assert len({text[:200] for text in told}) == len(swap.groups)


def test_a_line_with_a_name_is_replaced_as_a_whole() -> None:
    swap = read_swap_list("names")
    told = variants(swap, "CV\nName: Joan Miro\nKnows Python.", [0] * 8, "Name: {name}")
    assert told[:2] == ["CV\nName: Lakisha Washington\nKnows Python.", "CV\nName: Jamal Washington\nKnows Python."]


def test_a_name_of_the_list_is_replaced_in_its_place_and_capitals() -> None:
    swap = read_swap_list("names")
    told = variants(swap, "EMILY WALSH knows Python. Emily Walsh likes C.", [1] * 8, "Name: {name}")
    assert told[0] == "EBONY JEFFERSON knows Python. Ebony Jefferson likes C."
    assert told[2] == "CLAIRE SCHMIDT knows Python. Claire Schmidt likes C."


def test_pronouns_keep_their_case_and_form() -> None:
    swap = read_swap_list("pronouns")
    text = "She has led her team; the credit is hers. We thank her. She did it herself."
    she, he, they = variants(swap, text, [0] * 3, swap.insert[0])
    assert she == text
    assert he == "He has led his team; the credit is his. We thank him. He did it himself."
    assert they == "They have led their team; the credit is theirs. We thank them. They did it themselves."


def test_where_pronouns_are_mixed_a_line_goes_in() -> None:
    swap = read_swap_list("pronouns")
    text = "She took over from him."
    assert variants(swap, text, [0] * 3, swap.insert[0])[1] == f"Pronouns: he/him\n{text}"


def test_jobs_stay_as_they_are_and_words_come_up_equally_often() -> None:
    pairs = pairs_of(40)
    plan = plan_swaps(read_swap_list("names"), pairs, 20, seed=3)
    assert {job for job, _ in plan.texts} <= {pair.job_text for pair in pairs}
    assert plan.words.shape == (20, 8)
    assert len(plan.texts) == 160
    for column in plan.words.T.tolist():
        assert set(Counter(column).values()) == {2}
    own = {pair.candidate_text for pair in pairs}
    assert {re.sub(r"^Name: .*\n", "", text) for _, text in plan.texts} <= own
    again = plan_swaps(read_swap_list("names"), pairs, 20, seed=3)
    assert again.texts == plan.texts
    assert plan_swaps(read_swap_list("names"), pairs, 20, seed=4).texts != plan.texts


def test_weights_compare_a_group_with_the_mean_of_the_others() -> None:
    found = {(attribute, name): weights for attribute, name, _, weights in contrasts(read_swap_list("names"))}
    # Groups in the order of the file: Black woman, Black man, white woman, white man, and so on.
    assert found["race", "white"] == pytest.approx(np.array([-1, -1, 3, 3, -1, -1, -1, -1]) / 6)
    assert found["sex", "woman"] == pytest.approx(np.array([1, -1] * 4) / 4)
    assert ("sex", "man") not in found  # the same with the other sign
    assert len(found) == 1 + 4 + 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"attributes: [attribute]\ninsert: [x]\ngroups: [{GROUP}]", "two or more"),
        (f"attributes: [attribute]\ninsert: [x]\ngroups: [{GROUP}, {GROUP}]", "two groups have the same values"),
        (f"attributes: [other]\ninsert: [x]\ngroups: [{GROUP}, {GROUP}]", "lacks 'other'"),
        ("attributes: [a]\ninsert: ['{x}']\ngroups: [{a: 1, words: {w: [A]}}, {a: 2, words: {w: [B]}}]", "insert has {x}"),
        ("attributes: [a]\ninsert: [x]\ngroups: [{a: 1, words: {w: [A]}}, {a: 2, words: {v: [B]}}]", "different forms"),
        ("attributes: [a]\ninsert: [x]\ngroups: [{a: 1, words: {w: [3]}}, {a: 2, words: {w: [B]}}]", "quotation marks"),
        ("attributes: [a]\ninsert: [x]\ngroups: [{a: 1, words: {w: [A]}, find: {w: '('}}, {a: 2}]", "regular expression"),
        ("attributes: []\ninsert: [x]", "attributes must be a list of texts"),
        ("place: middle\nattributes: [a]\ninsert: [x]", "expected top or end"),
        ("colour: red", "unknown key 'colour'"),
        ("- a\n- b", "holds no keys"),
        ("a: [", "isn't valid YAML"),
        ("a: &x [1]\nb: *x", "isn't allowed"),
        ("[" * 60 + "]" * 60, "nested"),
    ],
)
def test_a_bad_list_is_named_with_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_swap_list(str(path))
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_list_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no list 'nmes'.*'names'"):
        read_swap_list("nmes")
