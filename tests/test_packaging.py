"""What the distributions hold, built from a copy of the tracked files."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import verl_aiops

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout, which says what belongs to the project")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and name[0] != "." and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory):
    """The names in sdist (without its top folder) and wheel, and the wheel's metadata."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    # each call replaces sys.argv
    build = "import sys; from setuptools import build_meta; out = sys.argv[1]"
    build += "; build_meta.build_sdist(out); build_meta.build_wheel(out)"
    run = subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as file:
        sources = {entry.name.partition("/")[2] for entry in file if entry.isfile()}
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return sources, set(file.namelist()), file.read(metadata).decode()


def test_the_sdist_holds_the_checkout(tracked, built):
    assert not tracked - built[0]


def test_the_wheel_holds_the_packages_with_their_data_and_the_examples_and_nothing_else(tracked, built):
    packages = {name for name in tracked if name.startswith(("verl_aiops/", "hydra_plugins/"))}
    examples = {f"verl_aiops/{name}" for name in tracked if name.startswith("examples/")}
    assert "verl_aiops/examples/quickstart.sh" in examples
    assert {name for name in built[1] if ".dist-info/" not in name} == packages | examples
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in built[1])


def test_there_is_one_version(built):
    assert f"\nVersion: {verl_aiops.__version__}\n" in built[2]
