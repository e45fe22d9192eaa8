import random
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from lantern_pl.data.batching import EpochShuffle, LengthBucketBatches
from lantern_pl.errors import UserError

LENGTHS = [random.Random(i).randint(10, 500) for i in range(1000)]


def batches(epoch: int = 0, seed: int = 0, lengths: list[int] = LENGTHS, **options: int) -> list[list[int]]:
    sampler = EpochShuffle(len(lengths), seed)
    sampler.set_epoch(epoch)
    return list(LengthBucketBatches(sampler, lengths, **{"batch_size": 8, **options}))


def padding(batches: list[list[int]]) -> float:
    """Share of the padded tokens that are padding."""
    padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)
    return 1 - sum(LENGTHS[i] for batch in batches for i in batch) / padded


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    sampler = EpochShuffle(100, seed=3)
    first = list(sampler)
    random.seed(1)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = EpochShuffle(100, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert sorted(second) == list(range(100))


def test_seed_and_epoch_do_not_stand_in_for_each_other() -> None:
    one, other = EpochShuffle(100, seed=0), EpochShuffle(100, seed=1)
    one.set_epoch(1)
    assert list(one) != list(other)


def test_each_epoch_has_other_batches_in_another_order() -> None:
    assert batches(epoch=1) == batches(epoch=1)
    assert batches(epoch=1) != batches(epoch=0)
    assert {frozenset(batch) for batch in batches(epoch=1)} != {frozenset(batch) for batch in batches(epoch=0)}


def test_batches_of_similar_length_need_less_padding() -> None:
    plain = list(EpochShuffle(1000, 0))
    unsorted = [plain[i : i + 8] for i in range(0, 1000, 8)]
    assert padding(batches()) < padding(unsorted) / 3


def test_batches_do_not_come_in_order_of_length() -> None:
    longest = [max(LENGTHS[i] for i in batch) for batch in batches()]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 0.35 < rises / len(longest) < 0.65


def test_lightning_finds_the_sampler_to_set_the_epoch() -> None:
    sampler = EpochShuffle(1000, 0)
    assert LengthBucketBatches(sampler, LENGTHS, 8).sampler is sampler


@settings(deadline=None)
@given(
    size=st.integers(0, 200),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    bucket_batches=st.integers(1, 6),
)
def test_over_all_ranks_each_example_comes_once_in_equally_many_batches(
    size: int, batch_size: int, world_size: int, bucket_batches: int
) -> None:
    lengths = [i * 7 % 31 for i in range(size)]
    ranks = []
    for rank in range(world_size):
        if 0 < size < world_size:
            with pytest.raises(UserError, match=f"{size} examples can't be shared by {world_size} processes"):
                LengthBucketBatches(SequentialSampler(range(size)), lengths, batch_size, rank, world_size)
            return
        bucketed = LengthBucketBatches(
            EpochShuffle(size, 0), lengths, batch_size, rank, world_size, bucket_batches=bucket_batches
        )
        ranks.append(list(bucketed))
        assert len(ranks[-1]) == len(bucketed)
    assert sorted(i for own in ranks for batch in own for i in batch) == list(range(size))
    assert len({len(own) for own in ranks}) == 1
    held = [len(batch) for own in ranks for batch in own]
    if held:
        assert max(held) - min(held) <= 1
        assert min(held) >= 1
        assert max(held) <= batch_size + (batch_size == 1 and world_size > 1)


def test_one_process_has_the_fewest_batches_possible() -> None:
    assert len(batches(lengths=LENGTHS[:33], batch_size=8)) == 5
    assert len(batches(lengths=LENGTHS[:32], batch_size=8)) == 4


def test_in_each_step_the_ranks_hold_similar_lengths() -> None:
    ranks = [batches(rank=rank, world_size=4) for rank in range(4)]
    waits = []
    for step in zip(*ranks, strict=True):
        longest = [max(LENGTHS[i] for i in batch) for batch in step]
        waits.append(max(longest) - min(longest))
    assert sum(waits) / len(waits) < 50


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"bucket_batches": 0}, {"rank": 2, "world_size": 2}])
def test_sizes_that_make_no_sense(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least 1, and the rank below"):
        batches(**bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_in_mid_epoch_where_it_stopped(workers: int) -> None:
    def loader() -> StatefulDataLoader[int]:
        sampler = EpochShuffle(100, seed=0)
        sampler.set_epoch(2)
        bucketed = LengthBucketBatches(sampler, LENGTHS[:100], 8)
        return StatefulDataLoader(range(100), batch_sampler=bucketed, num_workers=workers, collate_fn=list)

    whole = list(loader())
    stopped = loader()
    seen = list(islice(stopped, 5))
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert seen == whole[:5]
    assert list(resumed) == whole[5:]
