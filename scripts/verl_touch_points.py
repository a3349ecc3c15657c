#!/usr/bin/env python3
"""What of verl this package touches, and what of it another verl has not, or has otherwise.

Reads verl's files, imports nothing of theirs and runs nothing: a checkout is enough, whatever it asks for.

    python scripts/verl_touch_points.py --source main=/path/to/verl        # what is otherwise there; exit code 1 if any
    python scripts/verl_touch_points.py --source main=A --source neo=B --write   # the list in docs/verl_versions.md
    python scripts/verl_touch_points.py --write      # the same after a change of ours: what it says of others stays
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "verl_versions.md"
BEGIN, END = "<!-- touch points: scripts/verl_touch_points.py -->", "<!-- end of touch points -->"


@dataclass(frozen=True)
class Point:
    """Something of verl's that we use: ``module:name`` or ``module:Class.name``, and what for."""

    kind: str
    path: str
    why: str


def points() -> Iterator[Point]:
    """All touch points with verl: names through the seam, what is replaced, overridden, or kept by verl to itself."""
    from verl_aiops.seam import engine, replaced, reward_loop, rollout, trainer
    from verl_aiops.seam.documented import DOCUMENTED
    from verl_aiops.seam.neo import legacy
    from verl_aiops.verl_patches.overrides import OVERRIDES
    from verl_aiops.verl_patches.private import PRIVATE

    for kind, table in (
        ("trainer", trainer),
        ("engine", engine),
        ("reward loop", reward_loop),
        ("rollout", rollout),
        ("replaced", replaced),
        ("for neo", legacy),
    ):
        for need in table.NEEDS:
            if need.module.startswith("verl"):
                yield Point(kind, need.path, need.why)
    for module, names in DOCUMENTED.items():
        for name in names:
            yield Point("documented", f"{module}:{name}", "")
    seen = set()
    for kind, owner, name, why in (
        *(("overridden", entry.theirs, entry.name, entry.why) for entry in OVERRIDES),
        *(("private", entry.owner, entry.name, entry.why) for entry in PRIVATE),
    ):
        path = f"{owner}.{name}" if ":" in owner else f"{owner}:{name}"
        if owner.startswith("verl.") and (kind, path) not in seen:
            seen.add((kind, path))
            yield Point(kind, path, why)


class Source:
    """verl's files under a folder that holds the package ``verl``."""

    def __init__(self, folder: Path):
        if not (folder / "verl" / "__init__.py").is_file():
            raise SystemExit(f"{folder}: expected a folder with verl's package in it (verl/__init__.py)")
        self.folder = folder
        self.module = cache(self._module)

    def _module(self, module: str) -> tuple[ast.Module, bool] | None:
        plain = self.folder.joinpath(*module.split("."))
        for path, is_package in ((plain.with_suffix(".py"), False), (plain / "__init__.py", True)):
            if path.is_file():
                return ast.parse(path.read_text(encoding="utf-8")), is_package
        return None

    def find(self, module: str, name: str, seen: frozenset = frozenset()) -> tuple[str, ast.AST] | None:
        """What a module's name is, and where: its definition, followed through imports within verl; None if it has
        none."""
        found = self.module(module)
        if found is None or (module, name) in seen:
            return None
        tree, is_package = found
        hit: tuple[str, ast.AST] | None = None
        for node in _top(tree.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
                hit = module, node
            elif isinstance(node, ast.Assign | ast.AnnAssign) and name in _assigned(node):
                hit = module, node
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name or alias.name == "*":
                        owner = _absolute(node, module, is_package)
                        asked = name if alias.name == "*" else alias.name
                        inside = owner.split(".")[0] == "verl"
                        hit = (self.find(owner, asked, seen | {(module, name)}) if inside else (module, node)) or hit
        submodule = self.module(f"{module}.{name}")
        return hit or ((f"{module}.{name}", submodule[0]) if submodule else None)

    def member(self, module: str, owner: str, name: str) -> ast.AST | None:
        """An attribute of a class of verl's, also an inherited one or one that its methods set."""
        home, cls = self.find(module, owner) or (module, None)
        if not isinstance(cls, ast.ClassDef):
            return None
        for node in cls.body:
            if getattr(node, "name", None) == name or (
                isinstance(node, ast.Assign | ast.AnnAssign) and name in _assigned(node)
            ):
                return node
        for node in ast.walk(cls):
            if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store):
                return node
        for base in cls.bases:
            if isinstance(base, ast.Name) and (hit := self.member(home, base.id, name)):
                return hit
        return None

    def shape(self, path: str) -> str | None:
        """The parameters of a touch point, an empty text if it is no function, None if it is not there."""
        module, _, names = path.partition(":")
        owner, _, name = names.rpartition(".")
        node = self.member(module, owner, name) if owner else (self.find(module, name) or (module, None))[1]
        if node is None:
            return None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return ", ".join(_parameters(node))
        return ""


def _top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A module's statements, those under `if`, `try` and `with` among them."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _top(getattr(node, part, []))
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from _top(handler.body)


def _assigned(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts[: len(parts) - node.level + is_package]
    return ".".join([*above, *([node.module] if node.module else [])])


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    a = node.args
    names = [p.arg for p in (*a.posonlyargs, *a.args)] + ([f"*{a.vararg.arg}"] if a.vararg else [])
    return [*names, *(p.arg for p in a.kwonlyargs), *([f"**{a.kwarg.arg}"] if a.kwarg else [])]


def difference(base: str | None, other: str | None) -> str:
    """In words, what the other's shape is against the base's; an empty text for none."""
    if other is None:
        return "" if base is None else "gone"
    if base == other or base is None:
        return ""
    had, has = base.split(", "), other.split(", ")
    without, more = [n for n in had if n not in has], [n for n in has if n not in had]
    said = [f"without `{', '.join(without)}`"] if without else []
    said += [f"with `{', '.join(more)}`"] if more else []
    return " and ".join(said) or "in another order"


def table(rows: list[Point], base: Source, others: dict[str, Source]) -> str:
    lines = [" | ".join(["", "kind", "name", "what for", *others, ""]).strip(), "|" + " --- |" * (3 + len(others))]
    for point in rows:
        shape = base.shape(point.path)
        said = [difference(shape, source.shape(point.path)) for source in others.values()]
        lines.append(" | ".join(["", point.kind, f"`{point.path}`", point.why, *said, ""]).strip())
    return "\n".join(lines)


def table_again(rows: list[Point], text: str) -> str:
    """As `table`, with what a list that was written before says of each touch point; `?` for one that it has not."""
    head, rule, *lines = text.strip().splitlines()
    # the columns of other verls, after the one with what for
    before = {(cells[1], cells[2]): cells[4:-1] for cells in (line.split("|") for line in lines)}
    new = [" ? "] * (head.count("|") - 4)
    made = []
    for point in rows:
        cells = [f" {point.kind} ", f" `{point.path}` "]
        made.append("|".join(["", *cells, f" {point.why} ", *before.get((cells[0], cells[1]), new), ""]))
    return "\n".join([head, rule, *made])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME=FOLDER", help="a checkout of verl, e.g. main=../verl"
    )
    parser.add_argument("--write", action="store_true", help="put the list into docs/verl_versions.md")
    options = parser.parse_args(arguments)
    spec = importlib.util.find_spec("verl")
    base = Source(Path(spec.submodule_search_locations[0]).parent)
    others = {name: Source(Path(folder)) for name, _, folder in (text.partition("=") for text in options.source)}
    rows = list(points())
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        made = table(rows, base, others) if others else table_again(rows, rest.partition(END)[0])
        PAGE.write_text(f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
        return 0
    missing = [point for point in rows if base.shape(point.path) is None]
    for point in missing:
        print(f"installed: {point.kind}: {point.path}: not found")
    found = 0
    for name, source in others.items():
        for point in rows:
            if said := difference(base.shape(point.path), source.shape(point.path)):
                print(f"{name}: {point.kind}: {point.path}: {said}")
                found += 1
    print(f"{len(rows)} touch points; {found} otherwise than in the verl that is installed")
    return int(bool(found or missing))


if __name__ == "__main__":
    sys.exit(main())
