"""`lantern export`: a student's folder for those who have no lantern-pl."""

import argparse
import json
from pathlib import Path
from typing import Any

from lantern_pl.errors import CommandParser, UserError

_ABOUT = """\
Make a folder that others load: with plain transformers, vLLM (decoders), sentence-transformers' CrossEncoder or ONNX Runtime
(encoders), or `lantern serve`. It holds weights as safetensors, the tokenizer, a model card with the figures of test.json
and audit.json, and export.json with the sha256 of every file. Encoders are written as ONNX too, in fp32, proven equal to
torch, and in int8; all three are measured side by side, for speed and for what int8 costs in quality.
"""
_MORE = """\
examples:
  lantern export runs/quickstart --out exported/decoder
  lantern export runs/quickstart --out exported/decoder --dtype bfloat16
  lantern export runs/encoder --out exported/encoder --pairs data/encoder/pairs.jsonl
  lantern serve --encoder exported/encoder --encoder_format int8 --decoder exported/decoder
"""


def export_command(argv: list[str]) -> int:
    """Run `lantern export ...`; `argv` is what follows `export`. Raises UserError, and SystemExit after help."""
    parser = CommandParser(
        prog="lantern export", description=_ABOUT, epilog=_MORE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder (run_dir), or the student's folder in it")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where to; an earlier export is moved aside"
    )
    parser.add_argument(
        "--dtype",
        choices=("same", "float32", "bfloat16", "float16"),
        default="same",
        help="of a decoder's weights (default: same, as it was trained)",
    )
    parser.add_argument("--no_onnx", action="store_true", help="leave out an encoder's ONNX models, and measure nothing")
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE", help="pairs to measure an encoder on (default: the run's test pairs)"
    )
    parser.add_argument("--max_pairs", type=int, default=512, metavar="N", help="at most so many of them (default: 512)")
    options = parser.parse_args(argv)
    if options.max_pairs < 2:
        raise UserError(f"--max_pairs is {options.max_pairs}: give 2 or more.")

    from lantern_pl.export.card import model_card
    from lantern_pl.export.folder import files_of, new_folder, write_interface
    from lantern_pl.export.onnx_runtime import SUMMARY
    from lantern_pl.export.source import pairs_to_measure, read_source
    from lantern_pl.export.students import write_decoder, write_encoder
    from lantern_pl.model_files import quiet_transformers
    from lantern_pl.private_files import write_private_text

    quiet_transformers()
    source = read_source(options.run)
    kind = source.manifest["kind"]
    if kind == "encoder" and options.dtype != "same":
        raise UserError("--dtype is for decoders: an encoder is written in fp32, and as int8 in onnx/.")
    measured: dict[str, Any] = {}
    with new_folder(options.out) as folder:
        if kind == "decoder":
            about = write_decoder(source, folder, options.dtype)
        else:
            pairs, where = pairs_to_measure(source, options.pairs, options.max_pairs)
            about, measured = write_encoder(source, folder, pairs, not options.no_onnx, show=True)
            if measured:
                measured["measured_on"]["from"] = where
        write_interface(about, folder)
        (folder / "README.md").write_text(model_card(source, measured), encoding="utf-8")
        summary = {
            "format": 1,
            "kind": kind,
            "weights": source.manifest["weights"],
            **measured,
            "files": files_of(folder),
        }
        written = json.dumps(summary, indent=2) + "\n"
        (folder / SUMMARY).write_text(written)
    if source.run is not None:
        write_private_text(source.run / SUMMARY, written)
    _say(options.out, kind, measured)
    return 0


def _say(out: Path, kind: str, measured: dict[str, Any]) -> None:
    for name, speed in measured.get("speed", {}).items():
        quality = measured["quality"][name]
        f1 = f", macro F1 {quality['macro_f1']:.3f}" if "macro_f1" in quality else ""
        print(
            f"{name:>5}: {speed['pairs_per_second']:.0f} pairs/s, {speed['of_torch']:.2f} of torch{f1}, "
            f"the same level as torch for {quality['same_level']:.1%}"
        )
    print(f"The {kind} is in {out}; README.md there says how to load it.")
