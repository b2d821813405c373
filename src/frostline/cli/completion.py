"""Completion of commands and overrides in bash, zsh and fish.

Hydra's own script asks the program without the command word; this one passes the whole line.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from hydra.plugins.completion_plugin import DefaultCompletionPlugin

from frostline.config import COMMANDS, hydra_session
from frostline.errors import ConfigError, suggestion

_BASH = """\
_frostline_complete() {
    local line="${COMP_LINE:0:$COMP_POINT}"
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion query "$line" 2>/dev/null))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _frostline_complete frostline
"""

SCRIPTS = {
    "bash": _BASH,
    "zsh": "autoload -Uz bashcompinit && bashcompinit\n" + _BASH,
    "fish": (
        "complete -c frostline -f -a '(frostline completion query (commandline -cp) 2>/dev/null)'\n"
        "complete -c frostline -F -n 'string match -q \"*=*\" (commandline -ct)'\n"
    ),
}


def complete(arguments: Sequence[str]) -> int:
    """``completion install=SHELL`` prints a script to be evaluated; ``completion query LINE`` answers it."""
    if len(arguments) == 2 and arguments[0] == "query":
        print("\n".join(candidates(arguments[1])))
        return 0
    if len(arguments) == 1 and arguments[0].startswith("install="):
        shell = arguments[0].removeprefix("install=")
        if shell not in SCRIPTS:
            raise ConfigError(f"There is no completion for '{shell}'", mend=suggestion(shell, SCRIPTS))
        print(SCRIPTS[shell], end="")
        return 0
    print('eval "$(frostline completion install=bash)"   # in ~/.bashrc; zsh and fish likewise', file=sys.stderr)
    return 2


def candidates(line: str) -> list[str]:
    """What the last word of ``line`` may become; ``line`` begins with the program's name."""
    words = _words(line)[1:]
    last = words[-1] if words and not line.endswith(" ") else ""
    before = words[: len(words) - 1] if last else words
    if not before:
        return [f"{name} " for name in (*COMMANDS, "completion") if name.startswith(last)]
    command = before[0]
    if command not in COMMANDS or last.startswith("-"):
        return []
    directories = [before[i + 1] for i, word in enumerate(before[:-1]) if word in ("--config-dir", "-cd")]
    overrides = [word for word in before[1:] if "=" in word]
    with hydra_session(directories) as hydra:
        plugin = DefaultCompletionPlugin(hydra.config_loader)
        found = plugin._query(
            config_name=command, line=" ".join([*overrides, last]) if last else " ".join([*overrides, ""])
        )
    return [item for item in found if not item.endswith("=schema")]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
