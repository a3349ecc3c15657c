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


def test_modules_that_have_an_old_name_can_be_reloaded():
    """In a process of its own: whoever holds a class of a module that was reloaded holds another one."""
    code = (
        "import importlib, warnings\n"
        "from verl_aiops.moved import MOVED\n"
        "warnings.simplefilter('ignore')\n"
        "for old in MOVED:\n"
        "    module = importlib.import_module(old)\n"
        "    assert importlib.reload(module) is module is importlib.import_module(MOVED[old]), old\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_name_that_never_was_is_still_unknown():
    with pytest.raises(ModuleNotFoundError, match="verl_aiops.evaluation.curve'"):
        importlib.import_module("verl_aiops.evaluation.curve")


def test_commands_of_old_names_run():
    done = subprocess.run(
        [sys.executable, "-m", "verl_aiops.serving", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "folder" in done.stdout
