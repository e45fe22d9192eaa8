"""Pairs as tokens: nothing that matters is cut, and prompts to generate from are those of training."""

import dataclasses

import pytest

from lantern_pl.data.featurize import DecoderFeaturizer, EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.tasks import Task
from lantern_pl.text import chat_prompt, load_tokenizer

LONG = Pair(
    pair_id="long",
    job_id="j",
    candidate_id="c",
    job_text="The job begins. " + "We build software for hospitals and need Kubernetes. " * 60,
    candidate_text="The candidate begins. " + "I ran naïve Straße 東京 services 😀 for years. " * 60,
    level="medium",
    explanation='Meets Kubernetes: "ran services". Lacks Go.',
)


@pytest.fixture(scope="module")
def smollm():
    return load_tokenizer("embedded:smollm2-135m")


@pytest.mark.parametrize("max_length", [160, 200, 333, 512])
def test_a_long_pair_keeps_its_answer_and_the_start_of_both_texts(smollm, max_length: int) -> None:
    example = DecoderFeaturizer(smollm, Task(), max_length).encode(LONG)
    assert max_length - 40 < len(example.input_ids) <= max_length
    assert example.texts_cut
    assert not example.answer_cut
    prompt = smollm.decode(example.input_ids[: example.answer_start])
    answer = smollm.decode(example.input_ids[example.answer_start :])
    assert answer == Task().render_answer("medium", LONG.explanation) + smollm.eos_token
    assert "The job begins." in prompt
    assert "The candidate begins." in prompt
    # The template is whole: the instruction before the texts, and the turn of the assistant after them.
    assert prompt.startswith(chat_prompt(smollm, "Judge how well")[:40])
    assert prompt.endswith("<|im_start|>assistant\n")


def test_a_long_explanation_loses_its_end_and_never_the_level(smollm) -> None:
    wordy = dataclasses.replace(LONG, explanation="Meets this and that. " * 200)
    example = DecoderFeaturizer(smollm, Task(), 256).encode(wordy)
    answer = smollm.decode(example.input_ids[example.answer_start :])
    assert example.answer_cut
    assert answer.startswith("Fit: medium\nMeets this and that.")
    # What was cut doesn't end: to supervise an end there would teach to stop in mid-sentence.
    assert example.input_ids[-1] != smollm.eos_token_id
    assert "The candidate begins." in smollm.decode(example.input_ids[: example.answer_start])


def test_a_short_pair_is_left_whole(smollm) -> None:
    short = dataclasses.replace(LONG, job_text="Needs Go.", candidate_text="Knows Go.")
    example = DecoderFeaturizer(smollm, Task(), 512).encode(short)
    assert not example.texts_cut
    whole = chat_prompt(smollm, Task().render_prompt("Needs Go.", "Knows Go."))
    assert smollm.decode(example.input_ids[: example.answer_start]) == whole


def test_the_prompt_to_generate_from_is_the_one_that_was_trained_on(smollm) -> None:
    features = DecoderFeaturizer(smollm, Task(), 200)
    example = features.encode(LONG)
    assert smollm.encode(features.prompt(LONG), add_special_tokens=False) == example.input_ids[: example.answer_start]


def test_a_limit_that_leaves_nothing_of_the_texts_is_refused(smollm) -> None:
    with pytest.raises(UserError, match=r"max_length is 100.*'long' needs at least \d+ tokens"):
        DecoderFeaturizer(smollm, Task(), 100).encode(LONG)


@pytest.mark.parametrize("missing", ["level", "explanation"])
def test_a_pair_without_supervision_is_named(smollm, missing: str) -> None:
    with pytest.raises(UserError, match=f"'long' has no {missing}"):
        DecoderFeaturizer(smollm, Task(), 512).encode(dataclasses.replace(LONG, **{missing: None}))


@pytest.mark.parametrize("model", ["embedded:minilm-l6", "embedded:smollm2-135m"])
def test_encoders_see_both_texts_within_the_limit(model: str) -> None:
    tokenizer = load_tokenizer(model)
    example = EncoderFeaturizer(tokenizer, Task(), 128).encode(LONG)
    assert 100 < len(example.input_ids) <= 128
    text = tokenizer.decode(example.input_ids).lower()
    assert "the job begins" in text
    assert "the candidate begins" in text


def test_encoder_batches_tell_the_texts_apart_and_mask_padding() -> None:
    tokenizer = load_tokenizer("embedded:minilm-l6")
    features = EncoderFeaturizer(tokenizer, Task(), 128)
    short = dataclasses.replace(LONG, pair_id="short", job_text="Needs Go.", candidate_text="Knows Go.", level="high")
    batch = features.collate([features.encode(LONG), features.encode(short)])
    assert batch.levels.tolist() == [1, 2]
    length = int(batch.inputs["attention_mask"][1].sum())
    assert (batch.inputs["attention_mask"][1, length:] == 0).all()
    types = batch.inputs["token_type_ids"][1, :length].tolist()
    assert types == sorted(types)
    assert set(types) == {0, 1}
    assert batch.level_probs.isnan().all()
