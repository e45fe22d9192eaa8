"""A run that goes on in mid-epoch with other batches than it stopped with trains on each pair of the epoch once."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Ran

from lantern_pl.data.batching import EpochShuffle, LengthBucketBatches
from lantern_pl.data.loader import ResumableBatches

Lantern = Callable[..., Ran]
QUICK = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0")
PAIRS = 32
"""Of the training split."""


def ranks(size: int, batch_size: int, processes: int) -> list[ResumableBatches]:
    lengths = [index * 7 % 31 for index in range(size)]
    return [
        ResumableBatches(shuffle, LengthBucketBatches(shuffle, lengths, batch_size, rank, processes))
        for rank in range(processes)
        for shuffle in [EpochShuffle(size, seed=0)]
    ]


@settings(deadline=None)
@given(
    size=st.integers(8, 150),
    epoch=st.integers(0, 3),
    stretches=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 12)), min_size=1, max_size=4),
)
def test_whatever_the_sizes_each_pair_comes_once(size: int, epoch: int, stretches: list[tuple[int, int, int]]) -> None:
    """Stopped after some batches again and again, and at last trained to the epoch's end."""
    place: dict[str, Any] = {"epoch": epoch, "batches": 0}
    seen: list[int] = []
    for number, (batch_size, processes, batches) in enumerate(stretches):
        samplers = ranks(size, batch_size, processes)
        begun = {sampler.go_to(json.loads(json.dumps(place))) for sampler in samplers}
        (done,) = begun
        for sampler in samplers:
            if number < len(stretches) - 1:
                trained = [batch for batch, _ in zip(iter(sampler), range(batches), strict=False)]
            else:
                trained = list(sampler)
                assert done + len(trained) == len(sampler)  # what Lightning counts comes to a whole epoch
            seen += [index for batch in trained for index in batch]
        place = samplers[0].place(epoch, done + len(trained))
    assert max(Counter(seen).values(), default=1) == 1
    assert size - len(seen) < max(processes, 1)
    # The next epoch is a whole one.
    for sampler in samplers:
        sampler.sampler.set_epoch(epoch + 1)
    assert sorted(index for sampler in samplers for batch in sampler for index in batch) == list(range(size))


def test_the_same_global_batch_on_more_processes_is_gone_on_with() -> None:
    (alone,) = ranks(70, 8, 1)
    whole = [sorted(batch) for batch in alone]
    parts = ranks(70, 4, 2)
    assert {part.go_to(alone.place(0, 3)) for part in parts} == {3}
    assert [sorted(one + other) for one, other in zip(*parts, strict=True)] == whole[3:]


def test_a_place_of_an_unknown_number_is_of_as_many_batches_as_now() -> None:
    (sampler,) = ranks(40, 4, 1)
    whole = list(sampler)
    assert sampler.go_to({"epoch": 0, "batches": 3}) == 3
    assert list(sampler) == whole[3:]


def test_data_that_became_less_is_gone_on_with_from_the_same_share() -> None:
    (sampler,) = ranks(10, 4, 1)
    sampler.go_to({"epoch": 0, "batches": 6, "of": 8})
    assert 2 <= len([index for batch in sampler for index in batch]) <= 4
    sampler.go_to({"epoch": 0, "batches": 18, "of": 20})
    assert list(sampler) == []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The pair ids of each micro-batch that an encoder student is trained on."""
    from lantern_pl.students import EncoderStudent

    batches: list[list[str]] = []
    real = EncoderStudent.training_step

    def record(self: Any, batch: Any, batch_idx: int) -> Any:
        batches.append([pair.pair_id for pair in batch.pairs])
        return real(self, batch, batch_idx)

    monkeypatch.setattr(EncoderStudent, "training_step", record)
    return batches


def last_rates(run: Path) -> list[float]:
    log = max((run / "csv").glob("version_*"), key=lambda folder: int(folder.name.removeprefix("version_")))
    with (log / "metrics.csv").open() as file:
        return [float(row["train/learning_rate"]) for row in csv.DictReader(file) if row["train/learning_rate"]]


@pytest.mark.parametrize("batch_size", [3, 5, 12])
def test_the_epoch_goes_on_with_the_pairs_that_were_not_trained_on(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, seen: list[list[str]], batch_size: int
) -> None:
    fit = ("fit", "--config", tiny_encoder_config, *QUICK)
    assert lantern(*fit, "--trainer.max_steps=4").code == 0  # of 6 in each epoch
    trained = [pair for batch in seen for pair in batch]
    seen.clear()
    longer = (*fit, "--ckpt_path=last", f"--data.batch_size={batch_size}", "--trainer.max_epochs=2")
    ran = lantern(*longer, "--trainer.max_steps=-1")
    assert ran.code == 0, ran.err
    assert f"the epoch goes on with the {PAIRS - len(trained)} pairs that weren't trained on" in " ".join(ran.err.split())
    in_epoch = -(-PAIRS // batch_size)
    rest = [pair for batch in seen[:-in_epoch] for pair in batch]
    second = [pair for batch in seen[-in_epoch:] for pair in batch]
    assert len(trained + rest) == PAIRS
    assert set(trained + rest) == set(second)
    assert len(second) == PAIRS
    assert json.loads((tmp_path / "run/student/manifest.json").read_text())["steps"] == 4 + len(seen)
    # The schedule ends with the fit: before it at no step, and never rising again.
    rates = last_rates(tmp_path / "run")
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < rates[0] / 4


@pytest.mark.parametrize("shorter", ["--trainer.limit_train_batches=3", "--data.batch_size=16"])
def test_an_epoch_that_is_over_by_now_is_not_gone_on_with(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, seen: list[list[str]], shorter: str
) -> None:
    """Of 32 pairs, 30 were trained on."""
    fit = ("fit", "--config", tiny_encoder_config, *QUICK, "--data.batch_size=2")
    assert lantern(*fit, "--trainer.max_steps=15").code == 0
    seen.clear()
    ran = lantern(*fit, "--ckpt_path=last", shorter, "--trainer.max_epochs=2", "--trainer.max_steps=-1")
    assert ran.code == 0, ran.err
    assert [len(batch) for batch in seen] == ([2, 2, 2] if "limit" in shorter else [2, 16, 16])


def test_other_batches_twice_in_one_epoch_and_with_accumulation(
    lantern: Lantern, tiny_encoder_config: Path, seen: list[list[str]]
) -> None:
    fit = ("fit", "--config", tiny_encoder_config, *QUICK, "--trainer.max_epochs=1")
    more = (*fit, "--ckpt_path=last", "--trainer.accumulate_grad_batches=2")
    assert lantern(*fit, "--trainer.max_steps=2").code == 0
    for options in (("--data.batch_size=2", "--trainer.max_steps=4"), ("--data.batch_size=5", "--trainer.max_steps=-1")):
        ran = lantern(*more, *options)
        assert ran.code == 0, ran.err
    flat = [pair for batch in seen for pair in batch]
    assert len(flat) == len(set(flat)) == PAIRS
