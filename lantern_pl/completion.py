"""Shell completion: commands, and the aliases of installed plugins, none of which is imported for it."""

from collections.abc import Sequence

from lantern_pl import plugins
from lantern_pl.errors import UserError

SCRIPT = """\
_lantern() {
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "$(lantern complete -- "${COMP_WORDS[@]:1:COMP_CWORD}")" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _lantern lantern
"""
"""For bash, and for zsh after `autoload bashcompinit && bashcompinit`. Where nothing fits, files are completed."""

_AFTER = {
    "plugins": ["list", "show", "new"],
    "data": ["sample"],
    "cache": ["--config", "--help"],
    "fit": ["--config", "--print_config", "--help"],
    "validate": ["--config", "--help"],
    "test": ["--config", "--help"],
    "predict": ["--config", "--help"],
}


def completion_command(argv: Sequence[str]) -> int:
    """Run `lantern completion SHELL`: print what the shell is to read."""
    if list(argv) not in (["bash"], ["zsh"]):
        raise UserError('lantern completion: say for which shell, bash or zsh: eval "$(lantern completion bash)"')
    print(("autoload -U +X bashcompinit && bashcompinit\n" if argv[0] == "zsh" else "") + SCRIPT, end="")
    return 0


def complete_command(argv: Sequence[str], commands: Sequence[str]) -> int:
    """Run `lantern complete -- WORD ...`, which the script calls: what may stand in place of the last word, by lines."""
    words = [word for word in argv if word != "--"] or [""]
    print("\n".join(candidates(words, commands)))
    return 0


def candidates(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """What the last of the words may become; the words before it are as they are."""
    if len(words) == 1:
        return [*commands, "--help", "--version"]
    if words[-1].startswith("lantern_p"):
        return [f"{group}.{name}" for group in plugins.KINDS.values() for name in plugins.usable(group)]
    if list(words[:-1]) == ["plugins", "show"]:
        return sorted({name for group in plugins.KINDS.values() for name in plugins.discover(group)})
    if list(words[:-1]) == ["plugins", "new"]:
        return sorted(plugins.KINDS)
    return _AFTER.get(words[0], []) if len(words) == 2 else []
