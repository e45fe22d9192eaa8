"""The files of an exported student, and what was measured of it."""

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lantern_pl.causal_lm import load_causal_lm
from lantern_pl.data.featurize import EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.export.measure import Measured, Probs, best_batch, measure, quality, torch_probs
from lantern_pl.export.onnx_model import check_equal, write_int8, write_onnx
from lantern_pl.export.onnx_runtime import FILES, ONNX_FOLDER, OnnxEncoder
from lantern_pl.export.source import Source
from lantern_pl.model_files import MANIFEST
from lantern_pl.pair_classifier import load_classifier
from lantern_pl.text import load_tokenizer

Dtype = Literal["same", "float32", "bfloat16", "float16"]
# Not the manifest, which holds paths of the machine that trained; nor the student's README, which the card replaces.
_LEFT_BEHIND = {MANIFEST, "README.md"}


def copy_student(source: Source, out: Path) -> None:
    """All files that transformers loads."""
    for path in sorted(source.student.iterdir()):
        if path.is_file() and path.name not in _LEFT_BEHIND:
            shutil.copy(path, out / path.name)
            (out / path.name).chmod(0o644)


def interface(source: Source, **more: Any) -> dict[str, Any]:
    """lantern.json: what whoever calls the student must know."""
    task = source.task
    return {
        "format": 1,
        "kind": source.manifest["kind"],
        "task": {"levels": task.levels, "prompt": task.prompt, "answer": task.answer},
        "max_length": source.manifest["data"]["max_length"],
        **more,
    }


def write_decoder(source: Source, out: Path, dtype: Dtype) -> dict[str, Any]:
    """Weights (LoRA is merged in a run's student already), tokenizer with chat template, generation settings.

    Returns lantern.json.
    """
    copy_student(source, out)
    if dtype != "same":
        for path in out.glob("*.safetensors*"):
            path.unlink()
        load_causal_lm(str(source.student), getattr(torch, dtype)).save_pretrained(out)
    tokenizer: Any = load_tokenizer(str(source.student))
    new_tokens = source.manifest["student"].get("max_new_tokens")
    return interface(source, max_new_tokens=new_tokens, chat_template=tokenizer.chat_template is not None)


def write_encoder(
    source: Source, out: Path, pairs: list[Pair], onnx: bool, show: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The classifier, and beside it onnx/model.onnx and onnx/model_int8.onnx, measured on `pairs`.

    Returns lantern.json, and what was measured: speed and quality of each form, and how far apart torch and ONNX are.
    """
    copy_student(source, out)
    classifier = load_classifier(str(source.student)).requires_grad_(False).eval()
    tokenizer: Any = load_tokenizer(str(source.student))
    featurizer = EncoderFeaturizer(tokenizer, source.task, source.manifest["data"]["max_length"])
    as_pair = tokenizer.sep_token_id is not None
    about = interface(
        source, levels=classifier.levels, pad_token_id=tokenizer.pad_token_id, texts="pair" if as_pair else "one"
    )
    if not onnx:
        return about, {}
    folder = out / ONNX_FOLDER
    folder.mkdir()
    if show:
        print("Writing ONNX, fp32 and int8.", flush=True)
    write_onnx(classifier, featurizer, pairs, folder / FILES["onnx"])
    write_int8(folder / FILES["onnx"], folder / FILES["int8"])
    from lantern_pl.export.folder import write_interface  # what OnnxEncoder reads

    write_interface(about, out)
    threads = torch.get_num_threads()
    batch = best_batch(classifier, featurizer, pairs)
    forms: dict[str, Probs] = {"torch": torch_probs(classifier, featurizer, batch)}
    forms |= {name: OnnxEncoder(out, file, threads).level_probs for name, file in FILES.items()}
    measured = measure(forms, pairs, show)
    difference = check_equal(measured["torch"].probs, measured["onnx"].probs)
    return about, {**_figures(measured, pairs, source, batch), "largest_difference": {"onnx": difference}}


def _figures(measured: dict[str, Measured], pairs: list[Pair], source: Source, batch: int) -> dict[str, Any]:
    lengths = [len(pair.job_text) + len(pair.candidate_text) for pair in pairs]
    return {
        "speed": {
            name: {
                "pairs_per_second": round(each.pairs_per_second, 1),
                "of_torch": round(each.pairs_per_second / measured["torch"].pairs_per_second, 2),
            }
            for name, each in measured.items()
        },
        "quality": quality(measured, pairs, source.task),
        "measured_on": {
            "pairs": len(pairs),
            "median_characters": int(np.median(lengths)),
            "threads": torch.get_num_threads(),
            "torch_batch": batch,
        },
    }
