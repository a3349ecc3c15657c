"""The command that writes the examples, which travel with the package."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from verl_aiops.cli.command import Command, run_alone
from verl_aiops.files import write_atomically
from verl_aiops.inputs.shown import UserError, one_line

__all__ = ["EXAMPLES", "ExamplesError", "examples_folder", "write_examples"]


class ExamplesError(UserError):
    """The examples cannot be written, or are not there."""


def examples_folder() -> Path:
    """Where they are: beside this package's modules as installed (setup.py), or in the checkout it runs from.

    Raises `ExamplesError` where they are in neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / "quickstart.sh").is_file():
            return folder
    raise ExamplesError(f"no examples beside {one_line(package)}: install verl-aiops anew")


def write_examples(folder: str | Path, *, overwrite: bool = False) -> list[str]:
    """Write every example into `folder`; returns their names below it, sorted.

    Files of other names there stay. Raises `ExamplesError`, before anything is written, if one would be replaced whose
    content is another, unless `overwrite`.
    """
    source, target = examples_folder(), Path(folder)
    found = {
        path.relative_to(source): path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    changed = [
        name for name, content in found.items() if (target / name).exists() and (target / name).read_bytes() != content
    ]
    if changed and not overwrite:
        raise ExamplesError(
            f"{one_line(target)}: {', '.join(map(str, changed))} there is another than the package's; name another "
            "folder, or write it anew with --overwrite"
        )
    for name, content in found.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target / name, content)
    return [str(name) for name in found]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder to write them to; made if it is not there")
    parser.add_argument("--overwrite", action="store_true", help="replace files there that are not the package's")


def _run(args: argparse.Namespace) -> None:
    names = write_examples(args.folder, overwrite=args.overwrite)
    print("\n".join(one_line(Path(args.folder) / name) for name in names))
    print(f"\nto begin with: bash {shlex.quote(str(Path(args.folder) / 'quickstart.sh'))}")


EXAMPLES = Command(
    "write the example scripts of this release into a folder",
    "verl-aiops examples examples\nverl-aiops examples examples --overwrite",
    _options,
    _run,
)


if __name__ == "__main__":
    sys.exit(run_alone("examples", EXAMPLES))
