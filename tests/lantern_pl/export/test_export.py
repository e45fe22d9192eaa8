"""What `lantern export` writes is loaded by others, says the same as the student, and tells nothing of the machine."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import Ran

from lantern_pl.causal_lm import generate, load_causal_lm
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.data.sample import make_pairs
from lantern_pl.errors import UserError
from lantern_pl.export.onnx_model import check_equal
from lantern_pl.export.onnx_runtime import INT8, MODEL, OnnxEncoder
from lantern_pl.export.source import pairs_to_measure, read_source
from lantern_pl.tasks import Task
from lantern_pl.teachers.classifier import EncoderTeacher
from lantern_pl.text import load_tokenizer

Lantern = Callable[..., Ran]


def pairs(count: int) -> list[Pair]:
    names = ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text")
    return [Pair(**{name: row[name] for name in names}) for row in make_pairs(count, seed=4)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def encoder_run(lantern: Lantern, tiny_encoder_config: Path, runs: Path) -> Path:
    run = runs / "encoder"
    if not run.exists():
        assert lantern("fit", "--config", tiny_encoder_config, "--run_dir", run, "--model.pooling=cls").code == 0
        assert lantern("test", "--config", run / "config.yaml", "--ckpt_path=last", "--evaluation.bootstrap=100").code == 0
    return run


@pytest.fixture
def exported(lantern: Lantern, encoder_run: Path, runs: Path) -> Path:
    out = runs / "exported-encoder"
    if not out.exists():
        ran = lantern("export", encoder_run, "--out", out)
        assert ran.code == 0, ran.err
        assert "of torch, macro F1" in ran.out
    return out


def expected(run: Path, asked: list[Pair]) -> torch.Tensor:
    teacher = EncoderTeacher(str(run / "student"), 128)
    return torch.cat([teacher.level_probs([pair], Task()).probs for pair in asked])


def test_transformers_loads_an_encoder_as_it_is(exported: Path, encoder_run: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, loading = AutoModelForSequenceClassification.from_pretrained(exported, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(exported)
    for pair, probs in zip(short(6), expected(encoder_run, short(6)), strict=True):
        found = model(**tokenizer(pair.job_text, pair.candidate_text, return_tensors="pt")).logits[0].softmax(-1)
        torch.testing.assert_close(found, probs, atol=1e-5, rtol=1e-4)
    assert list(model.config.id2label.values()) == ["low", "medium", "high"]


def short(count: int) -> list[Pair]:
    """Pairs that no length cuts."""
    return [Pair(str(n), "j", "c", f"A cook, {n} years.", "Bakes bread. " * (n + 1)) for n in range(count)]


def test_sentence_transformers_loads_it_as_a_cross_encoder(exported: Path, encoder_run: Path) -> None:
    from sentence_transformers import CrossEncoder

    asked = short(4)
    found = CrossEncoder(str(exported), device="cpu").predict(
        [(pair.job_text, pair.candidate_text) for pair in asked], apply_softmax=True
    )
    np.testing.assert_allclose(found, expected(encoder_run, asked).numpy(), atol=1e-5)


def test_onnx_says_the_same_for_any_batch_and_length(exported: Path, encoder_run: Path) -> None:
    asked = [*pairs(7), *short(5)]
    probs = expected(encoder_run, asked).numpy()
    encoder = OnnxEncoder(exported, MODEL, threads=1)
    np.testing.assert_allclose(encoder.level_probs(asked), probs, atol=1e-5)
    assert encoder.level_probs([]).shape == (0, 3)
    # The file itself takes any number of rows, of any length.
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "onnx" / MODEL, providers=["CPUExecutionProvider"])
    tokenizer = load_tokenizer(str(exported))
    for size in (1, 2, 5):
        texts = [[pair.job_text for pair in short(size)], [pair.candidate_text for pair in short(size)]]
        logits = session.run(None, {**tokenizer(*texts, padding=True, return_tensors="np")})[0]
        found = torch.from_numpy(logits).softmax(-1)
        torch.testing.assert_close(found, expected(encoder_run, short(size)), atol=1e-5, rtol=1e-4)
    assert max(len(encoder.tokens(pair).input_ids) for pair in asked) == 128  # cut as in training
    quantized = OnnxEncoder(exported, INT8, threads=1).level_probs(asked)
    assert np.abs(quantized - probs).max() < 0.05
    assert not np.array_equal(quantized, probs)
    sizes = {name: (exported / "onnx" / name).stat().st_size for name in (MODEL, INT8)}
    assert sizes[INT8] < 0.4 * sizes[MODEL]


def test_an_int8_answer_does_not_hang_on_who_else_asks(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantized together, one row with large activations would take the others' digits."""
    from lantern_pl.serving.encoder_worker import EncoderWorker

    asked = [*pairs(6), Pair("h", "j", "c", "﷽ ☃ 𝕳 " * 40, "zzqx " * 90), *short(3)]
    encoder = OnnxEncoder(exported, INT8, threads=2)
    together = encoder.level_probs(asked)
    alone = np.concatenate([encoder.level_probs([pair]) for pair in asked])
    np.testing.assert_array_equal(together, alone)
    worker = EncoderWorker(str(exported), "int8", threads=1, max_batch_size=32, batch_timeout=0)
    monkeypatch.setattr("lantern_pl.serving.encoder_worker.start_worker", lambda: None)  # this isn't its process
    worker.setup("cpu")
    rows = [(tokens.input_ids, tokens.type_ids) for tokens in map(encoder.tokens, asked)]
    np.testing.assert_array_equal([probs for probs, _ in worker.predict(rows)], alone)


def test_its_files_are_listed_and_tell_nothing_of_the_machine(exported: Path, encoder_run: Path, runs: Path) -> None:
    summary = json.loads((exported / "export.json").read_text())
    assert json.loads((encoder_run / "export.json").read_text()) == summary
    for name, about in summary["files"].items():
        content = (exported / name).read_bytes()
        assert about == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert str(runs).encode() not in content, name
        assert b"Bakes" not in content
    found = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert found == {*summary["files"], "export.json"}
    assert not {name for name in found if name.endswith((".bin", ".pt", ".pkl", ".ckpt"))}
    assert set(summary["speed"]) == set(summary["quality"]) == {"torch", "onnx", "int8"}
    assert summary["speed"]["torch"]["of_torch"] == 1
    assert summary["largest_difference"]["onnx"] < 1e-4
    tested = json.loads((encoder_run / "test.json").read_text())["models"]["student"]["figures"]["macro_f1"]
    assert summary["quality"]["torch"]["macro_f1"] == pytest.approx(tested["value"], abs=1e-4)
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"| macro_f1 | {tested['value']:.3f}" in card
    assert "| int8 |" in card


def test_the_card_s_lines_run(exported: Path, encoder_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (exported / "README.md").read_text()
    code = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(code) == 2
    monkeypatch.chdir(exported)
    pair = short(1)[0]
    names: dict[str, Any] = {"job_text": pair.job_text, "candidate_text": pair.candidate_text}
    for block in code:
        exec(block, names)
    np.testing.assert_allclose(names["probs"], expected(encoder_run, [pair]).numpy(), atol=1e-5)


def test_predict_and_serve_know_an_exported_student(
    lantern: Lantern, exported: Path, encoder_run: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    from lantern_pl.serving.students import read_student

    student = read_student(str(exported), "encoder", "int8")
    assert (student.max_length, student.task) == (128, Task())
    asked = pairs(5)
    data = tmp_path / "pairs.jsonl"
    rows = ({"pair_id": p.pair_id, "job_text": p.job_text, "candidate_text": p.candidate_text} for p in asked)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    ran = lantern("predict", "--student", exported, "--pairs", data, "--out", tmp_path / "out", *options)
    assert ran.code == 0, ran.err
    found = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    probs = [[row["level_probs"][level] for level in Task().levels] for row in found]
    np.testing.assert_allclose(probs, expected(encoder_run, asked).numpy(), atol=1e-5)


def test_a_second_export_moves_the_first_aside(lantern: Lantern, encoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        assert lantern("export", encoder_run, "--out", out, "--no_onnx").code == 0
    assert (tmp_path / "out.1" / "export.json").is_file()
    assert not (out / "onnx").exists()
    assert "Speed" not in (out / "README.md").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_head_that_no_class_of_transformers_has(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    options = ("--model.pooling=mean", "--model.head_depth=2")
    assert lantern("fit", "--config", tiny_encoder_config, *options).code == 0
    ran = lantern("export", tmp_path / "run", "--out", tmp_path / "out", "--max_pairs=4")
    assert ran.code == 0, ran.err
    asked = pairs(3)
    found = OnnxEncoder(tmp_path / "out").level_probs(asked)
    np.testing.assert_allclose(found, expected(tmp_path / "run", asked).numpy(), atol=1e-5)
    assert "CrossEncoder can't load it" in (tmp_path / "out" / "README.md").read_text()


def test_a_student_without_its_run_is_measured_on_made_up_pairs(lantern: Lantern, encoder_run: Path, tmp_path: Path) -> None:
    source = read_source(copytree(encoder_run / "student", tmp_path / "alone"))
    assert source.run is None
    made, where = pairs_to_measure(source, None, 5)
    assert (len(made), "sample generator" in where) == (5, True)
    assert all(pair.level is None for pair in made)
    tested, where = pairs_to_measure(read_source(encoder_run / "student"), None, 1000)
    assert (len(tested), where) == (json.loads((encoder_run / "test.json").read_text())["pairs"], "the run's test split")


def test_a_decoder_with_lora_is_an_ordinary_causal_lm(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from transformers import AutoModelForCausalLM

    assert lantern("fit", "--config", tiny_decoder_config, "--model.lora.rank=2").code == 0
    out = tmp_path / "out"
    ran = lantern("export", tmp_path / "run", "--out", out)
    assert ran.code == 0, ran.err
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    model, loading = loaded
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not [path for path in out.iterdir() if "adapter" in path.name]
    tokenizer = load_tokenizer(str(out))
    assert tokenizer.chat_template
    assert json.loads((out / "generation_config.json").read_text())["do_sample"] is False
    pair = short(1)[0]
    student = load_causal_lm(str(tmp_path / "run" / "student"), torch.float32)
    prompt = DecoderFeaturizer(tokenizer, Task(), 320).prompt(pair)
    said = [generate(each, tokenizer, [prompt], 4)[0].text for each in (student, model.eval())]
    assert said[0] == said[1]
    # The card's lines say the same.
    code = (out / "README.md").read_text().split("```python\n")[1].partition("```")[0]
    monkeypatch.chdir(out)
    capfd.readouterr()
    exec(code, {"job_text": pair.job_text, "candidate_text": pair.candidate_text})
    assert capfd.readouterr().out.strip() == said[0].strip()
    assert json.loads((out / "lantern.json").read_text())["max_new_tokens"] == 4

    assert lantern("export", tmp_path / "run", "--out", tmp_path / "half", "--dtype", "bfloat16").code == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_decoder_without_a_chat_template(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert lantern("fit", "--config", tiny_decoder_config).code == 0
    student = tmp_path / "run" / "student"
    (student / "chat_template.jinja").unlink()
    out = tmp_path / "out"
    ran = lantern("export", tmp_path / "run", "--out", out)
    assert ran.code == 0, ran.err
    tokenizer, pair = load_tokenizer(str(out)), short(1)[0]
    assert tokenizer.chat_template is None
    prompt = DecoderFeaturizer(tokenizer, Task(), 320).prompt(pair)
    said = generate(load_causal_lm(str(student), torch.float32), tokenizer, [prompt], 4)[0].text
    card = (out / "README.md").read_text()
    assert "no chat template" in card
    monkeypatch.chdir(out)
    capfd.readouterr()
    exec(
        card.split("```python\n")[1].partition("```")[0], {"job_text": pair.job_text, "candidate_text": pair.candidate_text}
    )
    assert capfd.readouterr().out.strip() == said.strip()


def test_another_onnx_model_than_the_exported_one_is_refused(exported: Path, tmp_path: Path) -> None:
    from lantern_pl.serving.students import read_student

    folder = copytree(exported, tmp_path / "changed")
    (folder / "onnx" / INT8).write_bytes((folder / "onnx" / MODEL).read_bytes())
    for read in (lambda: OnnxEncoder(folder, INT8), lambda: read_student(str(folder), "encoder", "int8")):
        with pytest.raises(UserError, match="they were changed"):
            read()
    read_student(str(folder), "encoder", "onnx")
    # The name of what is served is of the student's weights, which the ONNX models were made from.
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="they were changed"):
        read_student(str(folder), "encoder", "onnx")
    read_student(str(folder), "encoder", "torch")


def test_a_folder_that_cannot_be_served_is_said_at_once(
    lantern: Lantern, encoder_run: Path, exported: Path, tmp_path: Path
) -> None:
    """And not by the traceback of the process that would load it."""

    def refused(folder: Path, form: str) -> str:
        ran = lantern("serve", "--encoder", folder, "--encoder_format", form)
        assert (ran.code, ran.out) == (2, "")
        return ran.err

    assert "no onnx/model_int8.onnx" in refused(encoder_run / "student", "int8")
    folder = copytree(exported, tmp_path / "damaged")
    about = json.loads((folder / "lantern.json").read_text())
    for content, said in (
        ("{", "can't read"),
        ("[]", "isn't what"),
        (json.dumps({**about, "task": {"x": 1}}), "isn't known"),
    ):
        (folder / "lantern.json").write_text(content)
        assert said in refused(folder, "torch")


def test_mistakes_are_named(
    lantern: Lantern, encoder_run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> str:
        ran = lantern("export", *arguments)
        assert (ran.code, ran.out) == (2, ""), ran.out
        return ran.err

    out = tmp_path / "out"
    assert "is no folder" in refused(tmp_path / "nowhere", "--out", out)
    assert "has neither student/manifest.json nor manifest.json" in refused(tmp_path, "--out", out)
    assert "has neither" in refused(exported, "--out", out)  # an export isn't a run
    (out / "sub").mkdir(parents=True)
    assert "holds other things" in refused(encoder_run, "--out", out)
    assert "for decoders" in refused(encoder_run, "--out", tmp_path / "a", "--dtype", "float16")
    assert "nowhere.jsonl" in refused(encoder_run, "--out", tmp_path / "a", "--pairs", "nowhere.jsonl")
    assert "--max_pairs is 1" in refused(encoder_run, "--out", tmp_path / "a", "--max_pairs=1")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    ran = lantern("export", encoder_run, "--out", tmp_path / "a")
    assert (ran.code, 'pip install "lantern-pl[onnx]"' in ran.err) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} >= {"out"}
    assert not (tmp_path / "a").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".a")]


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_an_onnx_model_that_says_something_else_is_not_kept(difference: float) -> None:
    probs = np.full((2, 3), 1 / 3)
    assert check_equal(probs, probs) == 0
    with pytest.raises(UserError, match="differ from torch's"):
        check_equal(probs, probs + difference)
