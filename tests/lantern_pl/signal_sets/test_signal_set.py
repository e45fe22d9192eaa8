"""A signal set on disk: any examples in any order, in any process, and nothing that was harmed."""

import json
import pickle
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from harm import harmed_bytes, manifest_of, write_manifest
from recording import Record
from safetensors.torch import load_file, save_file

from lantern_pl.cli import main
from lantern_pl.data.featurize import DecoderFeaturizer, Example
from lantern_pl.data.records import read_pairs
from lantern_pl.errors import UserError
from lantern_pl.signal_sets.formats import top_k_of
from lantern_pl.signal_sets.keys import as_numbers, batch_keys, example_key, pair_key
from lantern_pl.signal_sets.manifest import file_digest
from lantern_pl.signal_sets.reader import SignalSet
from lantern_pl.signals import TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.text import load_tokenizer


@pytest.fixture(scope="module")
def examples(tiny_lm: Path, pairs_file: Path) -> list[Example]:
    featurizer = DecoderFeaturizer(load_tokenizer(str(tiny_lm)), Task(), 320)
    return [featurizer.encode(pair) for pair in read_pairs(pairs_file, Task())]


def _keys(examples: list[Example]) -> np.ndarray:
    return as_numbers([example_key(e.input_ids, e.answer_start) for e in examples])


def test_any_examples_in_any_order_are_what_the_teacher_says(
    whole_set: Path, examples: list[Example], tiny_lm: Path
) -> None:
    teacher, signals = HFTeacher(str(tiny_lm)), SignalSet(whole_set)
    featurizer = DecoderFeaturizer(load_tokenizer(str(tiny_lm)), Task(), 320)
    chosen = Random(0).sample(examples, 7)
    batch = featurizer.collate(chosen)
    expected = top_k_of(teacher.score_tokens(batch.tokens), 8, 1.0)
    keys, counts = batch_keys(batch.tokens)
    assert np.array_equal(as_numbers(keys), _keys(chosen))
    found = signals.find_examples(as_numbers(keys))
    assert [signals.rows_of(int(example)) for example in found] == counts
    signal = signals.tokens(found)
    assert isinstance(signal, TopK)
    torch.testing.assert_close(signal.tail_log_mass, expected.tail_log_mass, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(signal.log_probs, expected.log_probs, atol=1e-4, rtol=1e-4)
    assert (signal.ids == expected.ids).float().mean() > 0.99  # equals may change places


def test_levels_are_what_the_teacher_says(whole_set: Path, examples: list[Example], tiny_lm: Path) -> None:
    pairs = [example.pair for example in examples[5:9]]
    signals = SignalSet(whole_set)
    found = signals.level_probs(signals.find_pairs(as_numbers([pair_key(pair) for pair in pairs])))
    expected = HFTeacher(str(tiny_lm)).level_probs(pairs, Task())
    torch.testing.assert_close(found.probs, expected.probs)


def test_an_example_is_found_by_all_that_the_teacher_saw(whole_set: Path, examples: list[Example]) -> None:
    signals, example = SignalSet(whole_set), examples[0]
    other_ids = [*example.input_ids[:-1], example.input_ids[-1] + 1]
    for ids, start in ((other_ids, example.answer_start), (example.input_ids, example.answer_start + 1)):
        assert signals.find_examples(as_numbers([example_key(ids, start)])) == [-1]
    assert signals.find_examples(_keys([example])) >= 0


class _Rows(torch.utils.data.Dataset[list[list[float]]]):
    def __init__(self, signals: SignalSet) -> None:
        self.signals = signals

    def __len__(self) -> int:
        return self.signals.manifest.examples

    def __getitem__(self, index: int) -> list[list[float]]:
        signal = self.signals.tokens([index])
        assert isinstance(signal, TopK)
        return signal.log_probs.tolist()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same(whole_set: Path, context: str) -> None:
    rows = _Rows(SignalSet(whole_set))
    loader = torch.utils.data.DataLoader(
        rows, batch_size=None, num_workers=2, multiprocessing_context=context, sampler=[40, 3, 17, 3]
    )
    assert list(loader) == [rows[index] for index in (40, 3, 17, 3)]
    again = pickle.loads(pickle.dumps(rows.signals))
    assert torch.equal(again.tokens([3]).ids, rows.signals.tokens([3]).ids)


def _shard(folder: Path) -> Path:
    return folder / "shard-00001.safetensors"


@pytest.mark.parametrize("where", [0.02, 0.5, 0.99])
def test_a_flipped_byte_is_found(signals: Path, where: float) -> None:
    content = bytearray(_shard(signals).read_bytes())
    content[int(len(content) * where)] ^= 1
    _shard(signals).write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00001.safetensors has the sha256 .*damaged or changed"):
        SignalSet(signals)


def test_a_shard_cut_short_is_found(signals: Path) -> None:
    content = _shard(signals).read_bytes()
    _shard(signals).write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"has {len(content) - 100} bytes, the manifest says {len(content)}"):
        SignalSet(signals)
    with pytest.raises(UserError, match="isn't a shard"):
        SignalSet(signals, verify=False)


def test_a_missing_shard_is_named(signals: Path) -> None:
    _shard(signals).unlink()
    with pytest.raises(UserError, match=r"shard-00001.safetensors can't be read: No such file"):
        SignalSet(signals)


def test_no_set_and_an_unfinished_one(signals: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no signal set"):
        SignalSet(tmp_path / "nowhere")
    (signals / "manifest.json").rename(signals / "unfinished.json")
    with pytest.raises(UserError, match="isn't finished"):
        SignalSet(signals)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.pop("shards"), "shards: Field required"),
        (lambda m: m["tokens"].update(k="8"), "tokens.k"),
        (lambda m: m["tokens"].update(k=99999), "k above the vocabulary"),
        (lambda m: m["tokens"].update(k=9), "ids is torch.uint32"),
        (lambda m: m["tokens"].update(vocab_size=10), "outside of 0 to 9"),
        (lambda m: m["tokens"].update(temperature=float("nan")), "tokens.temperature"),
        (lambda m: m["shards"][0].update(file="../../etc/passwd"), "shards.0.file"),
        (lambda m: m["shards"][0].update(tokens=10**9), "ids is torch.uint32"),
        (lambda m: m["levels"].append("more"), "level_probs is"),
        (lambda m: m.update(tokens=None), "it holds"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["tokens"].update(mode="sampled", rounds=50), "how many tokens a position has"),
        (lambda m: m["tokens"].update(mode="hidden", width=4, dtype="float32"), "no output head"),
        (lambda m: m["tokens"].update(scale=0.0), "tokens.scale"),
    ],
)
def test_a_manifest_that_doesnt_fit_is_refused(signals: Path, change: object, said: str) -> None:
    manifest = manifest_of(signals)
    change(manifest)  # type: ignore[operator]
    write_manifest(signals, manifest)
    with pytest.raises(UserError, match=said):
        SignalSet(signals).tokens([0])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("row_ends", lambda t: t.flip(0), "row_ends doesn't rise"),
        ("row_ends", lambda t: t - 1, "row_ends ends at"),
        ("ids", lambda t: t[:-1], "ids is"),
        ("ids", lambda t: t[:, :1].expand_as(t).clone(), "names a token twice"),
        ("ids", lambda t: t.view(torch.int32), "ids is torch.int32"),
        ("log_probs", lambda t: t * 0, "mass isn't 1"),
        ("tail_log_mass", lambda t: t.new_full(t.shape, torch.nan), "tail"),
        ("example_keys", lambda t: t[:, :8].contiguous(), "example_keys is"),
    ],
)
def test_a_shard_with_another_content_is_refused_though_its_checksum_is_right(
    signals: Path, name: str, change: object, said: str
) -> None:
    arrays = load_file(_shard(signals))
    arrays[name] = change(arrays[name])  # type: ignore[operator]
    save_file(arrays, _shard(signals))
    manifest = manifest_of(signals)
    manifest["shards"][1] |= {"sha256": file_digest(_shard(signals)), "bytes": _shard(signals).stat().st_size}
    write_manifest(signals, manifest)
    with pytest.raises(UserError, match=said):
        SignalSet(signals).tokens(range(16, 32))


FORMS = {
    "f32": ("--k=8", "--log_probs=f32"),
    "u8": ("--k=8", "--log_probs=u8", "--packed=true"),
    "sampled": ("--mode=sampled", "--packed=true"),
    "hidden": ("--mode=hidden",),
}


@pytest.fixture(scope="module", params=FORMS)
def set_of_each_form(request: pytest.FixtureRequest, cache_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of three shards in one of the forms. Not to be changed."""
    folder = tmp_path_factory.mktemp("forms") / request.param
    few = ("--limit=12", "--pairs_per_shard=4", "--sample=0")
    assert main(["cache", f"--config={cache_config}", f"--signals={folder}", *FORMS[request.param], *few]) == 0
    return folder


def test_harmed_files_give_typed_errors(set_of_each_form: Path, tmp_path: Path) -> None:
    assert fuzz(Path(shutil.copytree(set_of_each_form, tmp_path / "harmed")), 100)


@pytest.mark.slow
def test_thousands_of_harmed_files_give_typed_errors(set_of_each_form: Path, tmp_path: Path, record: Record) -> None:
    refused = fuzz(Path(shutil.copytree(set_of_each_form, tmp_path / "harmed")), 3000)
    record(
        f"Shards, heads and manifests ({set_of_each_form.name}) with flipped, cut, repeated and foreign bytes, most with a "
        "right checksum",
        found=f"3,000 files: {refused:,} refused with a typed error, the others read as before; no crash, below 1 s each",
        goal="typed errors alone",
    )


def fuzz(folder: Path, rounds: int) -> int:
    """Harm a shard, the head or the manifest, put the checksum right most of the time, and read: a UserError, or a signal of
    the same form. Returns how many were refused."""
    import time

    rng = Random(7)
    intact = {path.name: path.read_bytes() for path in folder.iterdir()}
    before = SignalSet(folder)
    examples = range(before.manifest.examples)
    signal = before.tokens(examples)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of memory starts anew
    memory = _high_water_mb()
    refused = 0
    for _ in range(rounds):
        name = rng.choice(sorted(intact))
        (folder / name).write_bytes(harmed_bytes(intact[name], rng))
        if name != "manifest.json" and rng.random() < 0.7:
            manifest = json.loads(intact["manifest.json"])
            for file in [*manifest["shards"], manifest.get("head", {})]:
                if file.get("file") == name:
                    file |= {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size}
            write_manifest(folder, manifest)
        began = time.process_time()
        try:
            found = SignalSet(folder).tokens(examples)
        except UserError:
            refused += 1
        else:
            assert type(found) is type(signal)
            if isinstance(found, TopK) and isinstance(signal, TopK):
                assert len(found.ids) == len(signal.ids)
                assert bool(((found.ids >= 0) & (found.ids < 49152)).all())
        assert time.process_time() - began < 1
        (folder / name).write_bytes(intact[name])
        (folder / "manifest.json").write_bytes(intact["manifest.json"])
    assert refused > rounds / 2
    assert _high_water_mb() - memory < 200
    return refused


def _high_water_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("number", [-1, 48, 10**9])
def test_a_number_that_isnt_there_is_named(whole_set: Path, number: int) -> None:
    with pytest.raises(UserError, match=f"has 48 examples, and no number {number}"):
        SignalSet(whole_set).tokens([3, number])


def test_a_shard_without_examples_does_no_harm(signals: Path) -> None:
    """Its pairs may all have tokens that were recorded already, where only the texts differ, behind the cut."""
    arrays = load_file(_shard(signals))
    levels = {name: arrays[name] for name in ("pair_keys", "level_probs")}
    save_file({**{name: array[:0] for name, array in arrays.items()}, **levels}, _shard(signals))
    manifest = manifest_of(signals)
    size = {"sha256": file_digest(_shard(signals)), "bytes": _shard(signals).stat().st_size}
    manifest["shards"][1] |= {**size, "examples": 0, "tokens": 0}
    write_manifest(signals, manifest)
    found = SignalSet(signals)
    assert (found.manifest.examples, found.manifest.pairs) == (32, 48)
    last = found.tokens([31])
    assert isinstance(last, TopK)
    assert torch.equal(
        last.ids[:1], load_file(signals / "shard-00002.safetensors")["ids"].view(torch.int32)[-len(last.ids)][None]
    )


def test_a_set_may_be_moved(signals: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(signals, tmp_path / "elsewhere"))
    assert SignalSet(moved).manifest.examples == 48
