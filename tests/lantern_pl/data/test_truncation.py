import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lantern_pl.data.sample import make_pairs
from lantern_pl.data.truncation import fit_texts
from lantern_pl.embedded import resolve
from lantern_pl.errors import UserError

PAIRS = make_pairs(24, 0)
JOB, CANDIDATE = PAIRS[0]["job_text"], PAIRS[0]["candidate_text"]


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([pair[side] for pair in PAIRS for side in ("job_text", "candidate_text")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64)


def embedded(name: str) -> PreTrainedTokenizerBase:
    from lantern_pl.text import load_tokenizer

    try:
        resolve(name)
    except UserError:
        pytest.skip(f"{name} isn't installed")
    return load_tokenizer(name)


@pytest.fixture(scope="module", params=["byte level", "embedded:smollm2-135m", "embedded:minilm-l6"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return byte_level() if request.param == "byte level" else embedded(request.param)


def count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def test_texts_that_fit_are_left_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    budget = count(JOB, tokenizer) + count(CANDIDATE, tokenizer)
    assert fit_texts(JOB, CANDIDATE, budget, tokenizer) == (JOB, CANDIDATE, False)
    assert fit_texts(JOB, CANDIDATE, budget - 1, tokenizer)[2]


def test_a_long_text_never_displaces_the_other(tokenizer: PreTrainedTokenizerBase) -> None:
    for long, short in ((JOB * 50, CANDIDATE), (CANDIDATE * 50, JOB)):
        room = 2 * count(short, tokenizer)
        assert fit_texts(long, short, room, tokenizer)[1] == short
        assert fit_texts(short, long, room, tokenizer)[0] == short


def test_what_one_text_leaves_the_other_takes(tokenizer: PreTrainedTokenizerBase) -> None:
    _, candidate, _ = fit_texts("Short.", CANDIDATE * 50, 200, tokenizer)
    assert count(candidate, tokenizer) >= 180
    job, _, _ = fit_texts(JOB * 50, "Short.", 200, tokenizer)
    assert count(job, tokenizer) >= 180


def test_two_long_texts_share_evenly(tokenizer: PreTrainedTokenizerBase) -> None:
    job, candidate, _ = fit_texts(JOB * 50, CANDIDATE * 50, 200, tokenizer)
    assert 90 <= count(job, tokenizer) <= 100
    assert 90 <= count(candidate, tokenizer) <= 100


def test_cuts_fall_between_words(tokenizer: PreTrainedTokenizerBase) -> None:
    for budget in range(40, 60):
        job, _, _ = fit_texts(JOB, CANDIDATE, budget, tokenizer)
        assert JOB.startswith(job)
        assert JOB[len(job)].isspace()


def test_a_text_without_spaces_is_cut_inside(tokenizer: PreTrainedTokenizerBase) -> None:
    job, _, _ = fit_texts("Job: " + "東京大学" * 100, CANDIDATE, 60, tokenizer)
    assert count(job, tokenizer) >= 25


# Characters of several bytes, joined ones, no spaces, only spaces.
texts = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="日本語、。", min_size=50, max_size=200),
    st.text(alphabet="😀👩‍👧é", min_size=20, max_size=100),
    st.text(alphabet="ab \n", max_size=300),
    st.just("x" * 1000),
)


@settings(deadline=None, max_examples=60)
@given(texts, texts, st.integers(0, 80))
def test_any_texts_fit_any_budget(tokenizer: PreTrainedTokenizerBase, job: str, candidate: str, budget: int) -> None:
    cut_job, cut_candidate, cut = fit_texts(job, candidate, budget, tokenizer)
    assert count(cut_job, tokenizer) + count(cut_candidate, tokenizer) <= budget
    assert job.startswith(cut_job)
    assert candidate.startswith(cut_candidate)
    assert cut == ((cut_job, cut_candidate) != (job, candidate))
    if budget >= 24:
        for text, rest in ((job, cut_job), (candidate, cut_candidate)):
            assert rest or not text[:1].strip()


def test_no_warning_about_the_length_that_is_being_mended(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")  # doesn't propagate to where caplog listens
    logger.addHandler(caplog.handler)
    try:
        fit_texts(JOB * 50, CANDIDATE * 50, 100, byte_level())
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []


def test_a_tokenizer_that_cannot_say_where_its_tokens_stand() -> None:
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    tokenizer = Slow(tokenizer_object=byte_level().backend_tokenizer)
    with pytest.raises(UserError, match=r"Slow can't tell where its tokens stand .* use a model that has a fast tokenizer"):
        fit_texts(JOB, CANDIDATE, 10, tokenizer)
