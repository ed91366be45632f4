"""Errors that a user can act on: what is wrong, where, and what to do."""

from __future__ import annotations

import shlex

# What a terminal would obey, or what would break a line: controls, line separators, changes of direction.
CONTROLS = dict.fromkeys(
    [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"
)


def printable(text: str) -> str:
    """A text on one line, with nothing that a terminal would obey: controls and changes of direction."""
    return " ".join(text.split()).translate(CONTROLS)


def shell_word(path: object) -> str:
    """A path as one word of a shell's command, to be pasted."""
    return shlex.quote(str(path))


class UserError(Exception):
    """Wrong input or configuration: one line for the user, exit code 2, nothing written.

    Args:
        what: the fault, as a clause without a full stop ("the file is empty").
        where: the file, line, flag or key it was found in.
        fix: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, where: object = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, str(where), fix
        super().__init__(str(self))

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        line = f"{line}. {self.fix}" if self.fix else line
        return printable(line)


class RunFailed(UserError):
    """A run that began with good input and could not finish: one line, exit code 1."""

    exit_code = 1


class NeedsNetwork(UserError):
    """Something has to come from a hub or a host that cannot be reached; ``fix`` names the offline way."""


class NeedsExtra(UserError):
    """An optional dependency is not installed; ``fix`` is the command that installs it."""

    def __init__(self, module: str, extra: str, package: str = "latentlab-shared") -> None:
        super().__init__(f"{module} is not installed", fix=f'Install it: pip install "{package}[{extra}]"')
