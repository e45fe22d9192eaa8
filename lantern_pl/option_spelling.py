"""Options may be written with dashes or with underscores, whichever way the parser declares them."""

from collections.abc import Collection, Sequence

_ARGUMENTS = ".init_args."


def as_declared(arguments: Sequence[str], declared: Collection[str]) -> list[str]:
    """Command-line arguments with each long option in the spelling that is among the `declared` ones, if one is.

    What a class takes isn't declared before the class is known, but has a name of Python's. Values aren't touched.
    """
    return [_as_declared(argument, declared) if argument.startswith("--") else argument for argument in arguments]


def _as_declared(argument: str, declared: Collection[str]) -> str:
    name, equals, value = argument.partition("=")
    if name in declared:
        return argument
    option, within, rest = name.partition(_ARGUMENTS)
    rest = rest.replace("-", "_")
    bare = option.removeprefix("--")
    for spelling in (option, "--" + bare.replace("-", "_"), "--" + bare.replace("_", "-")):
        if spelling in declared:
            return f"{spelling}{within}{rest}{equals}{value}"
    return argument
