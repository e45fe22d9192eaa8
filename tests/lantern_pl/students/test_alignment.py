"""Aligned pairs are kept by what they are."""

from dataclasses import replace

from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.students.alignment import Aligner
from lantern_pl.tasks import Task
from lantern_pl.text import load_tokenizer


def test_two_pairs_of_one_id_are_aligned_apart(pairs: list[Pair]) -> None:
    tokenizer = load_tokenizer("embedded:smollm2-135m")
    features = DecoderFeaturizer(tokenizer, Task(), 512)
    one, other = replace(pairs[0], explanation="Short."), replace(pairs[1], pair_id=pairs[0].pair_id)
    aligner = Aligner(tokenizer, features)
    for pair in (one, other):
        batch = features.collate([features.encode(pair)])
        translated, rows, others = aligner.align(batch)
        assert translated.pairs == [pair]
        assert translated.tokens.input_ids.tolist() == batch.tokens.input_ids.tolist()
        assert rows.tolist() == others.tolist() == list(range(len(batch.targets)))
