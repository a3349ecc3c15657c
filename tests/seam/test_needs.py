"""The tables of `verl_aiops/seam/`: verl as installed does for each, and what does not is told."""

import importlib
import importlib.metadata
import sys
import types

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from verl_aiops.seam import elsewhere, engine, need, older, queue, replaced, reward_loop, rollout, trainer
from verl_aiops.seam.need import Need

TABLES = (engine, queue, replaced, reward_loop, rollout, trainer)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__.rpartition(".")[2])
def test_verl_has_all_that_a_table_needs(table):
    assert {row.path: said for row in table.NEEDS if (said := need.unmet(row))} == {}
    for row in table.NEEDS:
        assert row.why


@pytest.fixture
def theirs(monkeypatch):
    """A module of verl's, made up."""
    module = types.ModuleType("verl.made_up")

    def step(batch, *, size, seed=0): ...

    class Trainer:
        def __init__(self, config): ...

        def fit(self): ...

    module.step, module.Trainer = step, Trainer
    module.many = lambda first, **more: None
    monkeypatch.setitem(sys.modules, "verl.made_up", module)
    return module


@pytest.mark.parametrize(
    "name, takes, has, said",
    [
        ("step", "batch size", "", None),
        ("step", "batch size seed", "", None),
        ("step", None, "", None),
        ("step", "batch size epochs", "", "verl.made_up:step takes no epochs"),
        ("step", "batch", "", "verl.made_up:step also asks for size"),
        ("many", "first anything", "", None),
        ("many", "anything", "", "verl.made_up:many also asks for first"),
        ("Trainer", "config", "fit", None),
        ("Trainer", "", "fit", "verl.made_up:Trainer also asks for config"),
        ("Trainer", "config", "fit step", "verl.made_up:Trainer has no step"),
        ("gone", None, "", "ImportError: cannot import name 'gone' from 'verl.made_up'"),
    ],
)
def test_what_does_not_do_is_told(theirs, name, takes, has, said):
    assert need.unmet(Need("verl.made_up", name, "", takes, has)) == said


def test_a_module_that_is_gone_is_told():
    said = need.unmet(Need("verl.no_such_module", "x", ""))
    assert said == "ModuleNotFoundError: No module named 'verl.no_such_module'"


def test_a_module_that_breaks_is_told(monkeypatch):
    def breaks(*args, **kwargs):
        raise RuntimeError("no\nsuch device")

    monkeypatch.setattr(need, "bring", breaks)
    assert need.unmet(Need("verl", "x", "")) == "RuntimeError: no such device"


def test_a_name_that_no_table_has_is_no_name_of_the_module():
    with pytest.raises(ImportError, match="cannot import name 'detach_trees'"):
        exec("from verl_aiops.seam.engine import detach_trees")
    with pytest.raises(ValueError, match="twice"):
        need.brought([Need("verl", "x", ""), Need("verl.utils", "x", "")])


# --- other releases --------------------------------------------------------------------------------------------------


def test_the_range_is_that_of_the_requirement():
    (wanted,) = (
        r for r in map(Requirement, importlib.metadata.requires("verl-aiops")) if r.name == "verl" and not r.extras
    )
    assert {str(part) for part in wanted.specifier} == {f">={elsewhere.FROM}", f"<{elsewhere.UNTIL}"}


@pytest.mark.parametrize(
    "version, inside",
    [
        ("0.9.1", True),
        ("0.9.7", True),
        ("0.9.0", False),
        ("0.9.0.dev", False),
        ("0.10.0.dev", False),
        ("0.10.0", False),
    ],
)
def test_builds_before_a_release_are_none(monkeypatch, version, inside):
    monkeypatch.setattr("verl.__version__", version)
    assert elsewhere.in_range() is inside


def test_what_stands_for_a_name_does_so_outside_the_range_alone(theirs, monkeypatch):
    asked = Need("verl.made_up", "gone", "")
    monkeypatch.setitem(elsewhere.ELSEWHERE, asked.path, "verl_aiops.seam.older:detach_tree")
    with pytest.raises(ImportError):
        need.bring(asked)
    monkeypatch.setattr("verl.__version__", "0.10.0.dev")
    assert need.bring(asked) is older.detach_tree
    theirs.gone = 1  # verl's own comes first
    assert need.bring(asked) == 1


def test_the_names_that_stand_elsewhere_are_needed_and_stand_there():
    paths = {row.path for table in TABLES for row in table.NEEDS}
    assert set(elsewhere.ELSEWHERE) <= paths
    for other in elsewhere.ELSEWHERE.values():
        module, _, name = other.partition(":")
        if module.startswith("verl_aiops."):
            assert hasattr(importlib.import_module(module), name)
    assert Version("0.9") < elsewhere.FROM < elsewhere.UNTIL


def test_our_detach_tree_is_verls():
    import torch
    from verl.workers.engine.utils import detach_tree

    leaf = torch.ones(2, requires_grad=True)
    report = {"a": [leaf * 2, (leaf, 3)], "b": "text", "c": torch.ones(1)}
    ours, verls = older.detach_tree(report), detach_tree(report)
    assert repr(ours) == repr(verls) and "grad" not in repr(ours)
    assert type(ours["a"][1]) is tuple and ours["c"].data_ptr() == report["c"].data_ptr()
