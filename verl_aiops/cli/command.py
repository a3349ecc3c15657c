"""What a command is, and how one is run by itself."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from verl_aiops.inputs.shown import printable

__all__ = ["Command", "run_alone", "said", "users_can_mend"]


class Command(NamedTuple):
    """`run` returns the exit code, or None for 0. `examples` are shown below the options."""

    summary: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]

    def describe(self) -> dict[str, object]:
        """For argparse: what stands above and below the options."""
        examples = "\n".join(f"  {line}" for line in self.examples.splitlines())
        return {
            "description": f"{self.summary[0].upper()}{self.summary[1:]}.",
            "epilog": f"examples:\n{examples}",
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }


def users_can_mend(error: Exception) -> bool:
    """Whether an error is one the user can mend: our own classes, or the file system's."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "verl_aiops"


# What the system's words leave open; the rest are the system's.
_SYSTEM = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "expected a file, found a folder",
    errno.ENOTDIR: "expected a folder above it, found a file",
    errno.EEXIST: "expected a folder, found a file",
}


def said(error: Exception) -> str:
    """The error as a command tells it: its own words, or, where only the system has any, the path before them."""
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.filename is not None:
        why = _SYSTEM.get(error.errno or 0) or (error.strerror or str(error)).lower()
        return printable(f"{error.filename}: {why}")
    return printable(error)


def run_alone(name: str, command: Command, argv: Sequence[str] | None = None) -> int:
    """Run a command under the name of its module, as ``python -m`` did before there was one command for all."""
    parser = argparse.ArgumentParser(prog=f"verl-aiops {name}", **command.describe())
    command.add_options(parser)
    try:
        return command.run(parser.parse_args(argv)) or 0
    except Exception as error:
        if not users_can_mend(error):
            raise
        print(f"{name}: error: {said(error)}", file=sys.stderr)
        return 2
