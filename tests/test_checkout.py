"""A clone is enough: nothing here looks for a file beside the checkout."""

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".sh", ".md", ".yaml", ".yml", ".toml", ".cfg", ".html", ".txt", ".jinja"}
SKIPPED = {".git", ".venv", "build", "dist", "__pycache__"}


def files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # a source archive
        found = [path for path in ROOT.rglob("*") if not SKIPPED & set(path.relative_to(ROOT).parts)]
    return [path for path in found if path.suffix in SUFFIXES and path.is_file()]


def looks_above(text, depth):
    """What of the text of a file, in a folder `depth` below the checkout's, names something beside the checkout."""
    found = [f"parents[{number}]" for number in re.findall(r"parents\[(\d+)\]", text) if int(number) > depth]
    found += [
        chain
        for chain in re.findall(r"__file__\)(?:\.resolve\(\))?((?:\.parent)+)\b(?!s)", text)
        if chain.count(".") > depth + 1
    ]
    found += re.findall(r"\bROOT\.parent\b", text)
    above = r"(?<![\w./])(?:\.\./)+"
    found += [path for path in re.findall(above + r"[\w-]+/[\w./-]*", text) if path.count("../") > max(depth, 0)]
    return found + re.findall(r"\bshared/(?:data|design|gpu)\b|\"shared\" */", text)


def test_no_file_names_one_beside_the_checkout():
    texts = {path: path.read_text(encoding="utf-8") for path in files() if path != Path(__file__).resolve()}
    assert len(texts) > 300
    found = {}
    for path, text in texts.items():
        if "harness/fuzz_mutations.py" in path.as_posix():  # hostile paths, for a model to write
            continue
        if looks := looks_above(text, len(path.relative_to(ROOT).parts) - 1):
            found[str(path.relative_to(ROOT))] = looks
    assert found == {}


def test_no_folder_of_tests_is_passed_over(pytestconfig):
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {part for path in (ROOT / "tests").rglob("test_*.py") for part in path.relative_to(ROOT).parts[:-1]}
    assert {"incidents", "build"} <= folders
    assert [name for name in folders if any(fnmatch(name, pattern) for pattern in passed_over)] == []


@pytest.mark.parametrize(
    "depth, text",
    [
        (2, 'Path(__file__).resolve().parents[3] / "x"'),
        (1, "Path(__file__).parent.parent.parent"),
        (2, 'ROOT.parent / "x"'),
        (0, "`cat ../incidents/x.jsonl`"),
        (1, "cd ../../incidents/x"),
        (2, 'HERE / "shared" / "data"'),
        (0, "see shared/data"),
    ],
)
def test_a_look_above_is_found(depth, text):
    assert looks_above(text, depth)


@pytest.mark.parametrize(
    "depth, text",
    [(2, "Path(__file__).parents[2]"), (1, "(../README.md) and ../docs/a.md"), (1, "Path(__file__).parent.parent")],
)
def test_a_look_within_is_none(depth, text):
    assert looks_above(text, depth) == []
