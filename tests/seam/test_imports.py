"""Names of verl's and TransferQueue's come through `verl_aiops/seam/`, except those that verl documents."""

import ast
import re
from pathlib import Path

import pytest

import verl_aiops
from verl_aiops.seam import engine, queue, replaced, reward_loop, rollout, trainer
from verl_aiops.seam.documented import DOCUMENTED

ROOT = Path(verl_aiops.__file__).parent
THEIRS = ("verl", "transfer_queue")
TABLES = (engine, queue, reward_loop, rollout, trainer)
# the program, and the group of its plug-ins; what else looks like a module of verl's in a text is one
NO_IMPORTS = {"verl.plugins", "verl.trainer.main_ppo", "verl.trainer.sft_trainer", "verl.trainer.config"}


def files():
    return [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] != "seam"]


def imports(tree):
    """(module, name) of all that a file imports from verl, at the top or in a function; the name is None for a whole
    module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in THEIRS:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] in THEIRS)


def forbidden(tree):
    # `import verl` alone brings no name: it is there for its plug-ins
    return {(module, name) for module, name in imports(tree) if name not in DOCUMENTED.get(module, ())} - {
        ("verl", None)
    }


def test_only_documented_names_are_imported_from_verl_itself():
    found = {str(path.relative_to(ROOT)): forbidden(ast.parse(path.read_text(encoding="utf-8"))) for path in files()}
    assert {path: names for path, names in found.items() if names} == {}, "take them through verl_aiops/seam/"


@pytest.mark.parametrize(
    "text, found",
    [
        ("from verl.utils.device import get_device_name", set()),
        ("from verl.utils.device import get_device_name, get_device_id", {("verl.utils.device", "get_device_id")}),
        ("def f():\n    import transfer_queue as tq", {("transfer_queue", None)}),
        ("import verl", set()),
        ("import verl.protocol", {("verl.protocol", None)}),
        ("from verl_aiops.seam.engine import Metric", set()),
    ],
)
def test_an_import_past_the_seam_is_found(text, found):
    assert forbidden(ast.parse(text)) == found


def test_what_is_documented_is_what_is_used():
    used = {pair for path in files() for pair in imports(ast.parse(path.read_text(encoding="utf-8")))}
    assert {(module, name) for module, names in DOCUMENTED.items() for name in names} - used == set()


def test_every_need_is_used():
    """A row that nothing takes any longer is no touch point."""
    for table in TABLES:
        stem = table.__name__.rpartition(".")[2]
        used = set()
        for path in files():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module == table.__name__:
                    used |= {alias.name for alias in node.names}
                # `from verl_aiops.seam import queue as tq`, then `tq.kv_clear`
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tq":
                    used |= {node.attr} if stem == "queue" else set()
        assert {need.name for need in table.NEEDS} == used, table.__name__


def test_modules_of_verls_that_are_named_in_texts_are_in_the_tables():
    """`plugin.py` waits for modules by their names."""
    known = {need.module for table in (*TABLES, replaced) for need in table.NEEDS} | set(DOCUMENTED) | NO_IMPORTS
    shape = re.compile(r"verl(\.\w+)*|transfer_queue")
    for path in files():
        if path.relative_to(ROOT).parts[0] == "verl_patches":  # tables of their own, held by tests/verl_patches
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and shape.fullmatch(node.value):
                assert node.value in known | {"verl"}, path
