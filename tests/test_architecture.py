"""Which file may know which: the table of docs/architecture.md, held to the imports of every file.

An import inside a function counts as one at the top, and so does the name of a module in a text, by which it may be
looked up; one under `if TYPE_CHECKING` does not, since it never happens.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "verl_aiops"
HEAVY = {"verl", "ray", "torch", "transformers"}

# Imports that the table forbids and that are still there. Who removes one removes its line; nobody adds any.
NOT_YET: set[str] = set()
# Modules named in a text that are no imports of the part: asked for only in runs that are theirs, or after verl.
BY_NAME = {
    "doctor.registration -> plugin",
    "trainers.preflight.available -> rewards.managers.combined",
    "trainers.preflight.available -> rewards.managers.triage",
    "trainers.preflight.available -> rollout.tools.agent_loop",
    "trainers.preflight.common -> trainers.triage.checks",
}
# Here trainers and the triage reward meet; runs of another task never import it.
MEETING = "trainers.triage"
# Likewise the circles that are still there.
CIRCLES_YET: set[str] = set()


def dotted(path):
    """The module that a file is: ``losses.table``; a folder's own file is the folder, the package's the empty name."""
    names = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


@cache
def modules():
    return {dotted(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def happening(tree):
    """All nodes of a tree but those under `if TYPE_CHECKING`."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            left += node.orelse
        else:
            left += ast.iter_child_nodes(node)


def full_names(path):
    """What a file imports, in full, relative imports included, and the modules of ours that its texts name."""
    inside = path.relative_to(ROOT).parts[:-1]
    for node in happening(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            package, _, rest = node.value.partition(".")
            if package == PACKAGE and rest and rest in modules():
                yield node.value


@cache
def imported(name):
    """The modules of ours that a file imports, and the packages of others."""
    ours, others = set(), set()
    if name == "moved":  # names all that has moved
        return ours, others
    for full in full_names(modules()[name]):
        top, _, rest = full.partition(".")
        if top != PACKAGE:
            others.add(top)
        elif rest in modules():
            ours.add(rest)
        else:  # a name in a module, not a module
            ours.add(rest.rpartition(".")[0])
    return {other for other in ours - {name} if f"{name} -> {other}" not in BY_NAME}, others


def folders_of(name):
    """The folders around a module, whose own files Python runs before it."""
    parts = name.split(".")
    return {".".join(parts[:at]) for at in range(len(parts))}


def reached(start):
    """Everything of ours that runs when the modules `start` and all that is in their functions are imported."""
    seen, left = set(), list(start)
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += imported(name)[0] | folders_of(name)
    return seen


def circles(graph):
    """The sets of modules that reach each other, of two or more, each as its sorted names."""
    index, low, found, path = {}, {}, set(), []

    def visit(name):  # Tarjan (1972), doi 10.1137/0201010
        index[name] = low[name] = len(index)
        path.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
            if other in path:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            circle = path[path.index(name) :]
            del path[path.index(name) :]
            if len(circle) > 1:
                found.add(", ".join(sorted(circle)))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


@cache
def table():
    """The page's rows: part -> (parts it may import, packages it does without)."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+?)(?:/|\.py)` \| .+? \| (.+?) \| ?(.*?) ?\|$", page, re.M)
    named = re.compile(r"`([\w/]+)`")
    return {
        part.replace("/", "."): (
            {""} if may.startswith("everything") else {name.replace("/", ".") for name in named.findall(may)},
            set(named.findall(without)),
        )
        for part, may, without in rows
    }


def within(name, part):
    return not part or name == part or name.startswith(part + ".")


def part_of(name):
    """The row of a module: the one with the longest name."""
    return max((part for part in table() if within(name, part)), key=len, default=None)


def test_every_file_has_a_row():
    lost = [name for name in modules() if part_of(name) is None and name and not within(name, "config")]
    assert not lost, f"docs/architecture.md, «The parts», has no row for {', '.join(lost)}"
    gone = [part for part in table() if not any(within(name, part) for name in modules())]
    assert not gone, f"docs/architecture.md, «The parts», has rows of parts that do not exist: {', '.join(gone)}"


def test_files_import_only_what_their_row_allows():
    crossing = set()
    for name in filter(part_of, modules()):
        part = part_of(name)
        for other in imported(name)[0]:
            allowed = not other or part_of(other) == part or any(within(other, one) for one in table()[part][0])
            if not allowed:
                crossing.add(f"{name} -> {other}")
    assert not crossing - NOT_YET, "forbidden by docs/architecture.md, «The parts»"
    assert not NOT_YET - crossing, "gone: remove from NOT_YET"


def test_parts_do_without_the_packages_that_their_row_names():
    assert {name for _, without in table().values() for name in without} == HEAVY
    for name in filter(part_of, modules()):
        for other in reached([name]):
            needs = imported(other)[1] & table()[part_of(name)][1]
            assert not needs, f"{name} reaches {other}, which imports {', '.join(needs)}"


def test_there_is_no_circle_of_files():
    graph = {}
    for name in modules():
        ours = imported(name)[0]
        # the own files of the folders around the importing one are running already
        around = {folder for other in ours for folder in folders_of(other)} - folders_of(name)
        graph[name] = (ours | around) - {name}
    found = circles(graph)
    assert not found - CIRCLES_YET
    assert not CIRCLES_YET - found, "gone: remove from CIRCLES_YET"


def test_what_is_named_in_texts_is_still_named():
    for name, other in (entry.split(" -> ") for entry in BY_NAME):
        assert f"{PACKAGE}.{other}" in full_names(modules()[name]), "gone: remove from BY_NAME"


def test_circles_are_found():
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"f", "b"}, "f": {"f"}}
    assert circles(graph) == {"a, b, c, d, e"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"e"}, "e": {"d"}}) == {"d, e"}


@pytest.mark.parametrize(
    "half, other",
    [
        (("losses", "data", "trainers"), ("rewards", "incidents")),
        (("rewards.aiops_mturn", "rewards.triage"), ("losses", "data", "trainers", "rollout")),
        (("incidents",), ("losses", "data", "trainers", "rollout", "rewards")),
    ],
)
def test_one_half_reaches_no_file_of_the_other(half, other):
    start = [name for name in modules() if any(within(name, part) for part in half) and not within(name, MEETING)]
    crossing = {
        f"{name} -> {ours}"
        for name in reached(start)
        for ours in imported(name)[0]
        if any(within(ours, part) for part in other) and not any(within(name, part) for part in other)
    }
    assert not crossing - NOT_YET


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
