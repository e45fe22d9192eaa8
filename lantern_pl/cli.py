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

Data and models:
  data        make sample data: lantern data sample --pairs 200 --seed 0 --out data/sample
  models      list the models that came as wheels, and make them ready

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


def _lightning(arguments: list[str]) -> int:
    from lantern_pl.lightning_cli import run

    return run(arguments)


def _data(arguments: list[str]) -> int:
    from lantern_pl.data.command import data_command

    return data_command(arguments[1:])


def _models(arguments: list[str]) -> int:
    from lantern_pl.embedded import models_command

    return models_command(arguments[1:])


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
    "data": _data,
    "models": _models,
    "plugins": _plugins,
    "completion": _completion,
}
