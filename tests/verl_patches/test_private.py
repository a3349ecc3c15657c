"""Names beginning with an underscore that are others': each is still there, and none is used that is not listed."""

import ast
import inspect
from pathlib import Path

import pytest

import verl_aiops
from verl_aiops.verl_patches.private import PRIVATE, Private, is_there

ROOT = Path(verl_aiops.__file__).parent


@pytest.mark.parametrize("entry", PRIVATE, ids=lambda entry: f"{entry.owner}.{entry.name}")
def test_it_is_there(entry):
    assert is_there(entry)


@pytest.mark.parametrize("owner, there", [("argparse:ArgumentParser", True), ("argparse", False)])
def test_what_objects_get_when_they_are_made_is_there_too(owner, there):
    """`_actions` is set in a base class's `__init__`."""
    assert is_there(Private(owner, "_actions", (), "")) is there
    assert not is_there(Private(owner, "_action", (), ""))


def test_a_process_of_rays_knows_that_it_is_one():
    import ray
    from ray._private.utils import read_ray_address

    assert hasattr(ray._private.worker.global_worker, "mode") and ray.WORKER_MODE != ray._private.worker.SCRIPT_MODE
    required = [
        p for p in inspect.signature(read_ray_address).parameters.values() if p.default is inspect.Parameter.empty
    ]
    assert not required


def underscored(name):
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def used(tree):
    """Underscored names that a file reads off something, asks for by text, or imports from others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and underscored(node.attr):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and underscored(node.args[1].value):
                yield node.args[1].value
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("verl_aiops"):
            private = any(map(underscored, node.module.split(".")))
            yield from (alias.name for alias in node.names if private or underscored(alias.name))


def made(tree):
    """Names that a file gives to something of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr


def test_every_use_is_in_the_table():
    """A name that no file of ours makes is somebody else's; a few are made by both, and listed for theirs."""
    trees = {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in ROOT.rglob("*.py")}
    ours = {name for tree in trees.values() for name in made(tree)}
    theirs = {(file, name) for file, tree in trees.items() for name in used(tree) if name not in ours}
    listed = {(file, entry.name) for entry in PRIVATE for file in entry.files}
    assert theirs - listed == set()
    assert {(file, name) for file, name in listed - theirs if name not in ours} == set(), "no longer used"
