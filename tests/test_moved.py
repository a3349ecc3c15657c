"""Modules of 0.1 under their names of then."""

import importlib
import subprocess
import sys

import pytest

from verl_aiops.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_same_module_and_says_the_new_one(old):
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"{MOVED[old]}; the old name goes with 0.3"):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    assert module is new and new.__name__ == new.__spec__.name == MOVED[old]
    assert importlib.reload(new) is new


def test_a_name_that_never_was_is_still_unknown():
    with pytest.raises(ModuleNotFoundError, match="verl_aiops.evaluation.curve'"):
        importlib.import_module("verl_aiops.evaluation.curve")


def test_commands_of_old_names_run():
    done = subprocess.run(
        [sys.executable, "-m", "verl_aiops.serving", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "folder" in done.stdout
