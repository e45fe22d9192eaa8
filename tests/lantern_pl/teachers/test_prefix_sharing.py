"""Sharing prefixes: the same signals as whole texts give, out of fewer tokens."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RwkvConfig,
)

from lantern_pl.causal_lm import hidden_at_positions
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.data.sample import make_pairs
from lantern_pl.errors import UserError
from lantern_pl.prefix_sharing import LEAST_SAVED, SHORTEST_SHARED, TextsInTurn, check_sharing, shared_hidden_at_positions
from lantern_pl.signals import Hidden, TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.testing import TeacherContract
from lantern_pl.text import load_tokenizer

# Weights large enough that a token tells which others it saw, and where; fresh ones hardly do.
SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "rotary positions": LlamaConfig(**SMALL),
    "learned positions": GPT2Config(
        vocab_size=100, n_embd=32, n_layer=4, n_head=2, initializer_range=0.3, bos_token_id=0, eos_token_id=1
    ),
    "sliding windows": MistralConfig(**SMALL, sliding_window=8),
    "some sliding windows": Gemma3TextConfig(
        **SMALL, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_lm(request.param)


@cache
def make_lm(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    lm: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name]).eval().requires_grad_(False)
    return lm


def words(count: int, seed: object) -> list[int]:
    """Ids that two seeds hardly have in common."""
    return Random(str(seed)).choices(range(2, 100), k=count)


def batch_of(rows: Sequence[tuple[list[int], list[int]]]) -> TokenBatch:
    """Prompts and their supervised answers, padded as the featurizer pads them."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.ones(len(rows), width, dtype=torch.long)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = 1
        positions[row, len(prompt) - 1 : end - 1] = bool(answer)
    return TokenBatch(ids, mask, positions)


TEMPLATE, JOBS = words(40, "template"), [words(70, "job 0"), words(85, "job 1")]


def pair_of(job: int, candidate: int) -> tuple[list[int], list[int]]:
    return TEMPLATE + JOBS[job] + words(5 + 4 * candidate, f"candidate {candidate}"), words(6 + candidate, job)


BATCHES = {
    "one job": [pair_of(0, 0), pair_of(0, 1), pair_of(0, 2)],
    "several jobs, in turn": [pair_of(0, 0), pair_of(1, 0), pair_of(0, 2), pair_of(1, 3), pair_of(0, 3)],
    "a job of one row": [pair_of(0, 0), pair_of(1, 1), pair_of(0, 1), (TEMPLATE + words(70, "other job"), words(5, 0))],
    "one row": [pair_of(0, 0)],
    "nothing in common": [(words(40, "a"), words(6, 0)), (words(60, "b"), words(9, 0)), (words(50, "c"), words(3, 0))],
    "two templates": [pair_of(0, 0), (words(84, "b"), words(5, 0)), (words(80, "b"), words(9, 1)), pair_of(1, 1)],
    "the same row twice": [pair_of(0, 1), pair_of(0, 1)],
    "one's answer is in the other's prompt": [(TEMPLATE, JOBS[0]), (TEMPLATE + JOBS[0], words(5, 0)), pair_of(0, 2)],
    "a row without an answer": [pair_of(0, 0), (TEMPLATE + JOBS[0] + words(30, "x"), []), pair_of(0, 1)],
    "no answers": [(TEMPLATE + JOBS[0], []), (TEMPLATE + JOBS[1], [])],
}  # fmt: skip


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_states_are_those_of_whole_texts(lm: PreTrainedModel, rows: list[tuple[list[int], list[int]]]) -> None:
    batch = batch_of(rows)
    expected = hidden_at_positions(lm, batch)
    found = shared_hidden_at_positions(lm, batch)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.lists(st.integers(0, 1), max_size=3), st.integers(1, 12), st.integers(0, 8)), min_size=1, max_size=6
    )
)
def test_states_are_those_of_whole_texts_in_any_tree(rows: list[tuple[list[int], int, int]]) -> None:
    """Rows go along branches of 30 to 150 ids, so that some are worth a run and some aren't."""
    llama = make_lm("rotary positions")
    made = []
    for path, own, answer in rows:
        prompt = [2]
        for depth in range(len(path)):
            prompt += words(30 + 40 * (depth + path[depth]), path[: depth + 1])
        made.append((prompt + words(own, f"own {own}"), words(answer, f"answer {own}")))
    batch = batch_of(made)
    assert torch.allclose(shared_hidden_at_positions(llama, batch), hidden_at_positions(llama, batch), atol=1e-4)


@contextmanager
def tokens_run(lm: PreTrainedModel) -> Iterator[list[int]]:
    """The number of tokens of each run of the backbone, padding included."""
    seen: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"].numel())

    hook = lm.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def test_each_prefix_is_run_once() -> None:
    llama = make_lm("rotary positions")
    # Of each job two candidates, whose texts and answers take 5 + 6, 9 + 7, 13 + 8 and 17 + 9 tokens; the last token of an
    # answer predicts nothing that is supervised.
    batch = batch_of([pair_of(0, 0), pair_of(1, 3), pair_of(0, 1), pair_of(1, 2)])
    with tokens_run(llama) as shared:
        shared_hidden_at_positions(llama, batch)
    assert sorted(shared) == sorted([40, 70, 85, 2 * (9 + 7 - 1), 2 * (17 + 9 - 1)])
    with tokens_run(llama) as whole:
        hidden_at_positions(llama, batch)
    assert whole == [4 * (40 + 85 + 17 + 9)]


def test_a_common_prefix_ends_where_the_first_answer_is_supervised() -> None:
    llama = make_lm("rotary positions")
    prompt, answer = words(80, "prompt"), words(10, "answer")
    with tokens_run(llama) as shared:
        shared_hidden_at_positions(llama, batch_of([(prompt, answer), (prompt + answer, words(4, 0))]))
    # The prompt's last token predicts the answer's first.
    assert shared == [len(prompt) - 1, 2 * (1 + len(answer) + 4 - 1)]


def test_a_row_that_departs_early_does_not_keep_the_others_from_sharing() -> None:
    llama, prefix = make_lm("rotary positions"), words(SHORTEST_SHARED, "prefix")
    others = [([*prefix, 5 + row], words(6, row)) for row in range(3)]
    with tokens_run(llama) as shared:
        shared_hidden_at_positions(llama, batch_of([(prefix[:-1] + words(30, "departs"), words(6, 3)), *others]))
    assert sorted(shared) == sorted([SHORTEST_SHARED, 3 * 6, SHORTEST_SHARED - 1 + 30 + 5])


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([pair_of(0, 0)], id="one row"),
        pytest.param([(words(SHORTEST_SHARED - 1, 0) + words(30, row), words(6, 0)) for row in range(3)], id="short prefix"),
        pytest.param([(words(LEAST_SAVED - 1, 0) + words(30, row), words(6, 0)) for row in range(2)], id="few rows"),
        pytest.param([(words(SHORTEST_SHARED, 0), words(6, row)) for row in range(3)], id="short prompt"),
    ],
)
def test_where_sharing_does_not_pay_the_whole_batch_is_run(rows: list[tuple[list[int], list[int]]]) -> None:
    llama, batch = make_lm("rotary positions"), batch_of(rows)
    with tokens_run(llama) as shared:
        found = shared_hidden_at_positions(llama, batch)
    assert shared == [batch.input_ids.numel()]
    assert torch.equal(found, hidden_at_positions(llama, batch))


def from_zero(kwargs: dict[str, Any]) -> None:
    kwargs["position_ids"] = torch.arange(kwargs["input_ids"].shape[1])[None]


def without_the_prefix(kwargs: dict[str, Any]) -> None:
    kwargs["attention_mask"] = kwargs["attention_mask"].clone()
    kwargs["attention_mask"][:, : -kwargs["input_ids"].shape[1]] = 0


def without_half_of_the_prefix(kwargs: dict[str, Any]) -> None:
    kwargs["attention_mask"] = kwargs["attention_mask"].clone()
    kwargs["attention_mask"][:, ::2] = 0


def of_another_row(kwargs: dict[str, Any]) -> None:
    kwargs["input_ids"] = kwargs["input_ids"].flip(0)


@pytest.mark.parametrize("spoil", [from_zero, without_the_prefix, without_half_of_the_prefix, of_another_row])
@pytest.mark.parametrize("lm", ["rotary positions", "learned positions"], indirect=True)
def test_wrong_positions_and_masks_would_show(lm: PreTrainedModel, spoil: Callable[[dict[str, Any]], None]) -> None:
    """What the checks above rest on: with these weights, a mistake is far larger than the tolerance."""

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "attention_mask" in kwargs:
            spoil(kwargs)
        return args, kwargs

    batch = batch_of(BATCHES["one job"])
    expected = hidden_at_positions(lm, batch)
    hook = lm.get_decoder().register_forward_pre_hook(before, with_kwargs=True)
    try:
        found = shared_hidden_at_positions(lm, batch)
    finally:
        hook.remove()
    assert (found - expected).abs().max() > 1e-1


def test_texts_in_turn_give_the_logits_of_whole_texts(lm: PreTrainedModel) -> None:
    first = words(70, "first")
    texts = [
        first,
        first[:60] + words(20, "second"),  # goes on from the middle of the one before it
        first[:60] + words(5, "third"),
        first[:20],  # ends within it, and further back than a window reaches
        first[:20],  # the same again
        first[:20] + words(40, "fourth"),
        words(30, "another"),  # nothing in common
        [*words(30, "another"), 5],
    ]
    in_turn = TextsInTurn(lm)
    with torch.no_grad():
        for ids in texts:
            found = in_turn.run(ids).logits
            assert found.shape == (1, 1, 100)
            assert torch.allclose(found[0, 0], lm(torch.tensor([ids])).logits[0, -1], atol=1e-4)


def test_texts_in_turn_run_only_what_differs() -> None:
    llama = make_lm("rotary positions")
    first = words(70, "first")
    in_turn = TextsInTurn(llama)
    with tokens_run(llama) as run:
        for ids in (first, [*first[:60], 1, 1], first[:20], first[:20], first):
            in_turn.run(ids)
    assert run == [70, 2, 1, 1, 50]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(Lfm2Config(**SMALL | {"layer_types": ["conv", "full_attention"] * 2}), id="other states"),
        pytest.param(RwkvConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2), id="no cache"),
    ],
)
def test_a_model_that_can_not_go_on_from_a_prefix_is_refused(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.vocab_size = 49152
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    load_tokenizer("embedded:smollm2-135m").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="share_prefixes to false"):
        HFTeacher(str(tmp_path), share_prefixes=True).to(torch.device("cpu"))
    HFTeacher(str(tmp_path)).to(torch.device("cpu"))


def test_a_model_with_keys_and_values_is_not_refused(lm: PreTrainedModel) -> None:
    check_sharing(lm)


# The teacher


@pytest.fixture(scope="module")
def teachers(small_lm: str) -> tuple[HFTeacher, HFTeacher]:
    """The ordinary one, and the one that shares prefixes."""
    return ready(small_lm), ready(small_lm, share_prefixes=True)


@pytest.fixture(scope="module")
def pairs(pairs_file: Path) -> list[Pair]:
    """Two jobs of four candidates each, in turn, and one pair of a third job."""
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()[:9]]
    names = ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text", "level", "explanation")
    return [Pair(*(row[name] for name in names)) for row in rows]


def ready(model: str, **arguments: Any) -> HFTeacher:
    return HFTeacher(model, max_new_tokens=4, **arguments).to(torch.device("cpu"))


def tokens_of(pairs: Sequence[Pair], teacher: HFTeacher) -> TokenBatch:
    features = DecoderFeaturizer(teacher.tokenizer, Task(), 512)
    return features.collate([features.encode(pair) for pair in pairs]).tokens


def logits_of(signal: Hidden) -> Tensor:
    return signal.hidden.float() @ signal.head.weight.float().T


def test_token_signals_are_the_same_and_fewer_tokens_are_run(
    teachers: tuple[HFTeacher, HFTeacher], pairs: list[Pair]
) -> None:
    ordinary, sharing = teachers
    batch = tokens_of(pairs, ordinary)
    with tokens_run(ordinary.lm) as whole:
        expected = ordinary.score_tokens(batch)
    with tokens_run(sharing.lm) as shared:
        found = sharing.score_tokens(batch)
    assert not found.hidden.requires_grad
    assert torch.allclose(logits_of(found), logits_of(expected), atol=1e-4)
    assert sum(shared) < 0.7 * sum(whole)


@pytest.mark.parametrize("levels", [["low", "medium", "high"], ["no fit at all", "a partial fit", "an excellent fit"]])
def test_level_probs_are_the_same_and_fewer_tokens_are_run(
    teachers: tuple[HFTeacher, HFTeacher], pairs: list[Pair], levels: list[str]
) -> None:
    """In the order of the pairs, also where one is asked about twice."""
    ordinary, sharing = teachers
    asked = [*pairs, pairs[2]]
    with tokens_run(ordinary.lm) as whole:
        expected = ordinary.level_probs(asked, Task(levels=levels)).probs
    with tokens_run(sharing.lm) as shared:
        found = sharing.level_probs(asked, Task(levels=levels)).probs
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    # In logarithms, since one level may have nearly all of the probability.
    assert torch.allclose(found.log(), expected.log(), rtol=0, atol=1e-3)
    assert (expected.log()[1:] - expected.log()[:-1]).abs().amax(-1).min() > 1e-2, "answers must differ to tell their order"
    assert sum(shared) < 0.6 * sum(whole)


def test_annotations_are_the_same(teachers: tuple[HFTeacher, HFTeacher], pairs: list[Pair]) -> None:
    ordinary, sharing = (teacher.annotate(pairs[:3], Task()) for teacher in teachers)
    assert [(a.level, a.text) for a in sharing] == [(a.level, a.text) for a in ordinary]


def test_in_bfloat16_they_differ_by_its_rounding(small_lm: str, pairs: list[Pair]) -> None:
    ordinary, sharing = ready(small_lm, dtype="bfloat16"), ready(small_lm, dtype="bfloat16", share_prefixes=True)
    batch = tokens_of(pairs[:4], ordinary)
    expected, found = (logits_of(teacher.score_tokens(batch)).softmax(-1) for teacher in (ordinary, sharing))
    assert (0.5 * (found - expected).abs().sum(-1)).max() < 0.1
    levels = [teacher.level_probs(pairs[:4], Task()).probs for teacher in (ordinary, sharing)]
    assert torch.allclose(levels[1], levels[0], rtol=0, atol=2e-2)


def test_it_is_the_same_teacher(small_lm: str) -> None:
    """What was asked of it before needn't be asked again."""
    assert HFTeacher(small_lm, share_prefixes=True).cache_key() == HFTeacher(small_lm).cache_key()


@pytest.mark.slow
def test_thirty_layers_give_the_same_signals() -> None:
    """Rounding adds up over layers."""
    names = ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text", "level", "explanation")
    pairs = [Pair(*(row[name] for name in names)) for row in make_pairs(4, seed=1)]
    teacher = ready("embedded:smollm2-135m")
    batch = tokens_of(pairs, teacher)
    expected, probs = logits_of(teacher.score_tokens(batch)), teacher.level_probs(pairs, Task()).probs
    teacher.share_prefixes = True
    assert torch.allclose(logits_of(teacher.score_tokens(batch)), expected, rtol=1e-5, atol=2e-4)
    assert torch.allclose(teacher.level_probs(pairs, Task()).probs, probs, rtol=0, atol=1e-5)


class TestContract(TeacherContract):
    """Among them, that a row's signals don't depend on the rest of the batch."""

    tolerance = 1e-4

    @pytest.fixture(autouse=True)
    def _teacher(self, teachers: tuple[HFTeacher, HFTeacher]) -> None:
        self.teacher = teachers[1]

    def make(self) -> HFTeacher:
        return self.teacher

    def batch(self) -> TokenBatch:
        """Rows that share a prefix, of different lengths."""
        prefix = words(60, "prefix")
        return batch_of([(prefix + words(20 - 5 * row, row), words(6, row)) for row in range(3)])
