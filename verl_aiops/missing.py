"""What of ours could not be put into verl, and why.

Every registration and replacement in `plugin.py` fails alone: verl itself and our other names go on, and who asks for
what is missing reads the reason here, from `verl-aiops doctor`, from the check before Ray, or from what stands in its
place.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import wrapt

__all__ = [
    "MISSING",
    "MissingError",
    "error_text",
    "raising",
    "require",
    "require_parameters",
    "wanted",
    "why_missing",
    "when",
]

logger = logging.getLogger(__name__)

# what is missing, as the doctor names it ("trainer mode dpo"), and the error that kept it out
MISSING: dict[str, str] = {}


class MissingError(RuntimeError):
    """Something of ours is asked for that could not be put into this verl."""


def error_text(error: BaseException) -> str:
    """An error in one line, without the full stop that a sentence around it sets."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(". ")


def why_missing(*names: str) -> str | None:
    """One sentence about those of the names that are missing, or None."""
    found = {name: MISSING[name] for name in names if name in MISSING}
    if not found:
        return None
    reasons = "; ".join(dict.fromkeys(found.values()))
    return (
        f"verl-aiops could not put {', '.join(found)} into verl {_verls_version()}: {reasons}. It is made for "
        f"{wanted('verl')}: install such a version (`verl-aiops doctor` shows what else is missing)"
    )


def when(module: str, *names: str, instead: Callable[[Callable], None] | None = None) -> Callable:
    """Decorator: call a function with a module once that has been imported, as `wrapt.when_imported` does.

    An exception goes no further than here: it is kept as the reason why `names` are missing.

    Args:
        module: a module of verl's, TransferQueue's or ours.
        names: what the function puts in.
        instead: called after a failure with a function that raises the reason, to register that under our name.
    """

    def decorate(function: Callable[[Any], None]) -> Callable[[Any], None]:
        @functools.wraps(function)
        def alone(imported: Any) -> None:
            try:
                function(imported)
            except Exception as error:
                _note(names, error)
                if instead is not None:
                    _stand_in(instead, names)

        wrapt.register_post_import_hook(alone, module)
        return alone

    return decorate


def _note(names: tuple[str, ...], error: Exception) -> None:
    reason = error_text(error)
    logger.debug("%s", reason, exc_info=error)
    if any(MISSING.get(name) != reason for name in names):
        logger.warning("verl-aiops: %s cannot be had with this verl: %s", ", ".join(names), reason)
    MISSING.update(dict.fromkeys(names, reason))


def _stand_in(instead: Callable[[Callable], None], names: tuple[str, ...]) -> None:
    try:
        instead(raising(*names))
    except Exception as error:  # then verl's own «unknown name» stands, and the reason in the log above it
        logger.debug("nothing to register in place of %s: %s", names, error_text(error))


def raising(*names: str) -> Callable:
    """A function that raises why `names` are missing, whatever it is called with."""

    def missing(*args: Any, **kwargs: Any):
        raise MissingError(why_missing(*names))

    return missing


def require(owner: Any, *names: str) -> None:
    """Raises AttributeError for a name that a class or module of verl's has not: what overrides it would never be
    called, without a word."""
    gone = [name for name in names if not hasattr(owner, name)]
    if gone:
        where = f"{owner.__module__}.{owner.__qualname__}" if isinstance(owner, type) else owner.__name__
        raise AttributeError(f"{where} has no {', '.join(gone)}")


def require_parameters(function: Callable, *names: str) -> None:
    """Raises TypeError for a function of verl's that takes others than these: ours in its place would not do."""
    takes = tuple(inspect.signature(function).parameters)
    if takes != names:
        raise TypeError(f"{function.__module__}.{function.__qualname__} takes ({', '.join(takes)}), not {names}")


def _verls_version() -> str:
    # of what is imported, which need not be what pip has installed
    return getattr(sys.modules.get("verl"), "__version__", "of unknown version")


def wanted(package: str) -> str:
    """The requirement of ours that names a package, with its range; the bare name where there is none."""
    try:
        lines = importlib.metadata.requires("verl-aiops") or ()
    except importlib.metadata.PackageNotFoundError:
        lines = ()
    return next((line.partition(";")[0].strip() for line in lines if line.startswith(package)), package)
