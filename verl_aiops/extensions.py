"""Modules of a user's own that add to our tables (losses, components of the reward, readers of incidents).

verl imports the modules that ``VERL_USE_EXTERNAL_MODULES`` names in each of its processes; here the commands do so too.
"""

from __future__ import annotations

import importlib
import os

__all__ = ["VARIABLE", "ExtensionError", "load_extensions"]

VARIABLE = "VERL_USE_EXTERNAL_MODULES"


class ExtensionError(ValueError):
    """A module that cannot be imported; the message names it and says how to mend it."""


def load_extensions() -> list[str]:
    """Import the modules that the environment names, separated by commas; returns their names.

    Raises:
        ExtensionError: one is not found, or fails while it is imported.
    """
    names = [name for part in os.environ.get(VARIABLE, "").split(",") if (name := part.strip())]
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module of the user's raises
            raise ExtensionError(
                f"{VARIABLE}={os.environ[VARIABLE]}: {name} cannot be imported ({type(error).__name__}: {error}); put "
                "its folder into PYTHONPATH, mend it, or remove it from the variable"
            ) from error
    return names
