"""What a decoder student is taken to say: its own greedy text, and the probability of each level whatever it wrote."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lantern_pl.causal_lm import generate, load_causal_lm
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.prediction.answers import decoder_answers
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.text import load_tokenizer

PAIRS = [
    Pair("1", "j", "c", "A cook.", "Bakes bread and cakes, and has run a kitchen for eleven years."),
    Pair("2", "j", "d", "A cook.", "Sings."),
    Pair("3", "k", "d", "A singer for weddings, who plays the piano as well.", "Sings."),
]


def lively(folder: Path) -> Any:
    """The model with weights so large that what it says is far from even, and differs from pair to pair."""
    lm = load_causal_lm(str(folder), torch.float32)
    for parameter in lm.parameters():
        parameter.data *= 4
    return lm


@pytest.mark.parametrize(
    "levels", [["low", "medium", "high"], ["no fit", "no match", "good match"], ["no", "no fit", "good match"]]
)
def test_level_probabilities_are_those_of_the_levels_names(tiny_lm: Path, levels: list[str]) -> None:
    task = Task(levels=levels)
    lm, tokenizer = lively(tiny_lm), load_tokenizer(str(tiny_lm))
    features = DecoderFeaturizer(tokenizer, task, 400)
    batch = features.collate([features.encode(pair, supervised=False) for pair in PAIRS])
    answers = decoder_answers(lm, tokenizer, task, batch, 6)
    teacher = HFTeacher(str(tiny_lm))
    teacher._lm = lm
    expected = teacher.level_probs(PAIRS, task).probs
    assert float(expected.std(0).max()) > 1e-3
    found = torch.tensor([[answer["level_probs"][level] for level in levels] for answer in answers])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    scores = torch.tensor([answer["score"] for answer in answers])
    torch.testing.assert_close(scores, expected @ torch.tensor([0.0, 0.5, 1.0]), atol=1e-5, rtol=1e-4)
    prompts = [features.prompt(pair) for pair in PAIRS]
    assert [answer["text"] for answer in answers] == [text.text for text in generate(lm, tokenizer, prompts, 6)]


def test_level_and_explanation_are_read_from_the_text(tiny_lm: Path) -> None:
    lm, tokenizer = lively(tiny_lm), load_tokenizer(str(tiny_lm))
    task = Task(prompt="{job_text} {candidate_text}", answer="{level}{explanation}")
    features = DecoderFeaturizer(tokenizer, task, 400)
    batch = features.collate([features.encode(pair, supervised=False) for pair in PAIRS])
    unreadable = decoder_answers(lm, tokenizer, task, batch, 12)
    for answer in unreadable:
        assert (answer["level"], answer["explanation"], answer["valid_format"]) == (None, None, False)
    text = unreadable[0]["text"]
    readable = decoder_answers(lm, tokenizer, replace(task, levels=[text[:3], "other"]), batch, 12)[0]
    assert (readable["level"], readable["explanation"], readable["valid_format"]) == (text[:3], text[3:].strip(), True)
