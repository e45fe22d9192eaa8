"""The `lantern` command: finds the subcommand and imports what that one needs, so that help comes at once."""

import sys
from collections.abc import Callable, Sequence

from lantern_pl import __version__
from lantern_pl.errors import UserError, did_you_mean

HELP = f"""\
lantern {__version__}: distil a strong, slow LLM into small students that can be served

Usage: lantern <command> [options]

Train and use students (one config for all; `lantern fit --help` explains every key):
  fit         train a student: lantern fit --config configs/quickstart.yaml
  validate    its figures on the validation split
  test        its figures on the test split
  predict     answers about the pairs of a file
  audit       whether it treats people alike: lantern audit --config configs/lantern/10_audit.yaml
  compare     teachers and students on the same pairs, in one table: lantern compare --config configs/lantern/9_compare.yaml

  report      one HTML file about one or several runs: lantern report runs/quickstart
  export      a folder for transformers, vLLM, ONNX: lantern export runs/quickstart --out exported/quickstart
  serve       an exported pair of students over HTTP: lantern serve --encoder FOLDER --decoder FOLDER

Label pairs with a teacher:
  label       ask a teacher about pairs, with a store that loses nothing: lantern label --config configs/lantern/1_label.yaml
  review      look at labels in a browser, and keep the good ones: lantern review --labels labels/black_box --reviewer me

Keep what a teacher says:
  cache       record its signals, to learn from them without it: lantern cache --config configs/signals/1_cache.yaml

Data and models:
  data        make sample data: lantern data sample --pairs 200 --seed 0 --out data/sample
  models      list the models that came as wheels, and make them ready

This machine:
  doctor      versions, bad releases, compiler, GPU and losses, disk, hub, plugins: one screen, exit 1 on a problem

Plugins:
  plugins     teachers and divergences that are installed, and one of your own: lantern plugins new divergence NAME
  completion  for your shell: eval "$(lantern completion bash)"

Every command has --help. Values on the command line win over the config:
  lantern fit --config configs/encoder.yaml --data.path my_pairs.jsonl --trainer.max_epochs 3
A config with every key and its default:  lantern fit --config configs/encoder.yaml --print_config
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 2 for what the user can put right, said in one message on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    # The last is what the completion script calls, for no person to type.
    command = {**COMMANDS, "complete": _completion}.get(arguments[0])
    try:
        if command is None:
            raise UserError(f"There is no command {arguments[0]!r}. {did_you_mean(arguments[0], COMMANDS)}")
        return command(arguments)
    except UserError as error:
        print(f"lantern: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lantern: stopped.", file=sys.stderr)
        return 130


def _lightning(arguments: list[str]) -> int:
    from lantern_pl.lightning_cli import run

    return run(arguments)


def _data(arguments: list[str]) -> int:
    from lantern_pl.data.command import data_command

    return data_command(arguments[1:])


def _models(arguments: list[str]) -> int:
    from lantern_pl.embedded import models_command

    return models_command(arguments[1:])


def _compare(arguments: list[str]) -> int:
    from lantern_pl.evaluation.model_table import compare_command

    return compare_command(arguments[1:])


def _audit(arguments: list[str]) -> int:
    from lantern_pl.audit.command import audit_command

    return audit_command(arguments[1:])


def _report(arguments: list[str]) -> int:
    from lantern_pl.report.command import report_command

    return report_command(arguments[1:])


def _export(arguments: list[str]) -> int:
    from lantern_pl.export.command import export_command

    return export_command(arguments[1:])


def _serve(arguments: list[str]) -> int:
    from lantern_pl.serving.command import serve_command

    return serve_command(arguments[1:])


def _label(arguments: list[str]) -> int:
    from lantern_pl.labelling.command import label_command

    return label_command(arguments[1:])


def _review(arguments: list[str]) -> int:
    from lantern_pl.labelling.review.command import review_command

    return review_command(arguments[1:])


def _cache(arguments: list[str]) -> int:
    from lantern_pl.signal_sets.command import cache_command

    return cache_command(arguments[1:])


def _doctor(arguments: list[str]) -> int:
    from lantern_pl.doctor.command import doctor_command

    return doctor_command(arguments[1:])


def _plugins(arguments: list[str]) -> int:
    from lantern_pl.plugin_command import plugins_command

    return plugins_command(arguments[1:])


def _completion(arguments: list[str]) -> int:
    from lantern_pl.completion import complete_command, completion_command

    if arguments[0] == "complete":
        return complete_command(arguments[1:], list(COMMANDS))
    return completion_command(arguments[1:])


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fit": _lightning,
    "validate": _lightning,
    "test": _lightning,
    "predict": _lightning,
    "audit": _audit,
    "compare": _compare,
    "report": _report,
    "export": _export,
    "serve": _serve,
    "label": _label,
    "review": _review,
    "cache": _cache,
    "data": _data,
    "models": _models,
    "doctor": _doctor,
    "plugins": _plugins,
    "completion": _completion,
}
