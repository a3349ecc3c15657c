"""Which part may know which: the table of docs/architecture.md, held to the imports of every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "verl_aiops"
PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
OURS = {
    "inputs": set(),
    "losses": set(),
    "incidents": {"inputs"},
    "data": {"inputs"},
    "rewards": {"data", "inputs"},
    "platform": set(),
    "doctor": {"platform"},
    "rollout": {"data", "inputs", "platform"},
    "trainers": {"data", "inputs", "losses", "platform", "rewards", "rollout"},
    "trl": {"data", "evaluation", "incidents", "inputs", "losses"},
    "evaluation": {"data", "incidents", "inputs", "platform", "rewards", "rollout", "trainers"},
    "config": set(),
}
FOREIGN = {
    "inputs": {"verl", "transformers", "ray", "torch"},
    "losses": {"verl", "transformers", "ray"},
    "incidents": {"verl", "transformers", "ray", "torch"},
    "rewards": {"verl", "ray"},
    "data": {"verl", "ray"},
    "trl": {"verl", "ray"},
}


def imports(path):
    """Full names of all modules that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                above = path.relative_to(PACKAGE.parent).parts[: -node.level]
                yield ".".join([*above, node.module or ""])
                continue
            yield node.module
            if node.module == "verl_aiops":
                yield from (f"verl_aiops.{alias.name}" for alias in node.names)


def files(part):
    return sorted((PACKAGE / part).rglob("*.py"))


def test_every_part_is_in_the_table():
    parts = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert parts == set(OURS)
    for part in parts - {"config"}:
        assert f"| `{part}/` |" in PAGE, part


@pytest.mark.parametrize("part", OURS)
def test_parts_import_only_what_the_table_allows(part):
    for path in files(part):
        for name in imports(path):
            names = name.split(".")
            if names[0] == "verl_aiops" and len(names) > 1 and (PACKAGE / names[1]).is_dir():
                assert names[1] in OURS[part] | {part}, f"{path} imports {name}"


@pytest.mark.parametrize("part", FOREIGN)
def test_halves_do_without_the_heavy_packages(part):
    for path in files(part):
        if part == "rewards" and "managers" in path.parts:
            continue
        for name in imports(path):
            assert name.split(".")[0] not in FOREIGN[part], f"{path} imports {name}"


def test_evaluation_takes_only_the_merging_of_checkpoints_from_the_trainers():
    taken = {name for path in files("evaluation") for name in imports(path) if name.startswith("verl_aiops.trainers")}
    assert taken == {"verl_aiops.trainers.dpo.checkpoints"}


def test_there_is_no_circle():
    order, left = [], dict(OURS)
    while left:
        free = [part for part, needs in left.items() if needs <= set(order)]
        assert free, f"a circle among {sorted(left)}"
        order += free
        left = {part: needs for part, needs in left.items() if part not in free}


@pytest.mark.parametrize(
    "module, never",
    [
        ("verl_aiops.losses", ["verl", "ray", "transformers"]),
        ("verl_aiops.incidents", ["verl", "ray", "transformers", "torch"]),
        ("verl_aiops.rewards.aiops_mturn", ["verl", "ray", "transformers", "torch"]),
        ("verl_aiops.cli.main", ["verl", "ray", "transformers", "torch"]),
    ],
)
def test_one_half_loads_without_the_other(module, never):
    code = f"import sys, {module}; sys.exit(', '.join(set({never!r}) & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
