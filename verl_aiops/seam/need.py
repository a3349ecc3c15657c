"""One name of verl's that we need: where it is, how we call it, and how it is brought."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from verl_aiops.seam.elsewhere import elsewhere

__all__ = ["Need", "bring", "brought", "unmet"]


@dataclass(frozen=True)
class Need:
    """A name of verl's or TransferQueue's.

    Attributes:
        module: of verl 0.9 that has it.
        name: as verl has it, and as the rest of the package imports it.
        why: what for.
        takes: parameters that we give it, separated by blanks, of a function or of a class's constructor; None where
            we call neither.
        has: attributes of it that we use, separated by blanks.
    """

    module: str
    name: str
    why: str
    takes: str | None = None
    has: str = ""

    @property
    def path(self) -> str:
        return f"{self.module}:{self.name}"


def bring(need: Need) -> Any:
    """The thing itself, or what stands for it in a verl outside the supported range.

    Raises:
        ImportError: verl has it not, or not where it should be.
    """
    try:
        # as `from module import name`, also where the name is a module of its own
        module = __import__(need.module, globals(), None, (need.name,))
        return getattr(module, need.name)
    except (ImportError, AttributeError) as error:
        if (other := elsewhere(need.path)) is not None:
            owner, _, name = other.partition(":")
            return getattr(importlib.import_module(owner), name)
        if isinstance(error, AttributeError):
            raise ImportError(f"cannot import name {need.name!r} from {need.module!r}") from None
        raise


def brought(needs: Sequence[Need]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose names are those of a table, each brought when it is asked for."""
    table = {need.name: need for need in needs}
    if len(table) != len(needs):
        raise ValueError("a name stands twice in a table of needs")

    def named(name: str) -> Any:
        if name not in table:
            raise AttributeError(f"the table of needs has no {name}")
        return bring(table[name])

    return named


def unmet(need: Need) -> str | None:
    """Why verl as it is installed does not do for a need, in one sentence, or None.

    Looks the name up, which imports its module, and compares parameters and attributes; calls nothing.
    """
    try:
        thing = bring(need)
    except Exception as error:  # a module of verl's that cannot be imported may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    gone = [name for name in need.has.split() if not hasattr(thing, name)]
    if gone:
        return f"{need.path} has no {', '.join(gone)}"
    return None if need.takes is None else _not_taken(need, thing)


def _not_taken(need: Need, thing: Any) -> str | None:
    given = need.takes.split() if need.takes else []
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):  # of a class that shows none
        return None
    named = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters) and (
        unknown := [name for name in given if name not in named]
    ):
        return f"{need.path} takes no {', '.join(unknown)}"
    asked = [p.name for p in parameters if p.default is p.empty and p.name in named and p.name not in given]
    return f"{need.path} also asks for {', '.join(asked)}" if asked else None
