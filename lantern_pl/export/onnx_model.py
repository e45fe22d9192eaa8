"""An encoder student as ONNX: fp32, proven equal to torch, and int8."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lantern_pl.data.featurize import EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.pair_classifier import PairClassifier

TOLERANCE = 1e-4
"""Largest difference of a probability between torch and the fp32 ONNX model."""


class _Named(nn.Module):
    """The classifier with its inputs as arguments of their own, as ONNX wants them."""

    def __init__(self, classifier: PairClassifier, names: list[str]) -> None:
        super().__init__()
        self.classifier = classifier
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(dict(zip(self.names, inputs, strict=True)))
        return logits


def write_onnx(classifier: PairClassifier, featurizer: EncoderFeaturizer, pairs: list[Pair], path: Path) -> None:
    """Write the fp32 model, whose batch and length are free. `pairs`: two examples to trace it with.

    Raises UserError where the architecture can't be exported, or onnx isn't installed.
    """
    _require("onnxscript")
    batch = featurizer.collate([featurizer.encode(pair, supervised=False) for pair in pairs[:2]])
    names = list(batch.inputs)
    rows, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=featurizer.max_length)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                _Named(classifier, names).eval(),
                tuple(batch.inputs.values()),
                dynamo=True,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=(tuple({0: rows, 1: length} for _ in names),),
                verbose=False,
            )
            program.save(str(path))
    except Exception as error:  # the exporter has errors of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"torch can't write this encoder as ONNX: {reason}. Export it without by --no_onnx; everything else works."
        ) from error


def write_int8(source: Path, path: Path) -> None:
    """Write the model with int8 weights, for each output channel on its own, and activations quantized as they come.

    Weights use 7 bits: CPUs without VNNI add products of two int8 pairs in 16 bits, which 8 would make overflow.
    """
    _require("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    between = path.with_suffix(".pre.onnx")
    with _quiet():
        quant_pre_process(str(source), str(between), skip_symbolic_shape=True)
        quantize_dynamic(
            str(between),
            str(path),
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
    between.unlink()


def check_equal(torch_probs: np.ndarray, onnx_probs: np.ndarray) -> float:
    """The largest difference of two models' probabilities [P, K]. Raises UserError above TOLERANCE."""
    difference = float(np.abs(torch_probs - onnx_probs).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"The ONNX model's probabilities differ from torch's by up to {difference:.1e}, over {TOLERANCE}: nothing was "
            "kept. Export without it by --no_onnx."
        )
    return difference


def _require(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise UserError(f'ONNX needs {error.name}: pip install "lantern-pl[onnx]", or give --no_onnx.') from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantizer print and warn about what no user can change."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
