"""`verl-aiops examples`: the files of the checkout, wherever the package is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from verl_aiops.cli import examples
from verl_aiops.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_they_are_the_checkout_s(tmp_path, capsys):
    target = tmp_path / "new" / "mine"
    assert main(["examples", str(target)]) == 0
    assert files(target) == files(ROOT / "examples")
    printed = capsys.readouterr().out.splitlines()
    assert f"{target}/reward_score/aiops_mturn.py" in printed
    assert printed[-1] == f"to begin with: bash {target}/quickstart.sh"


def test_a_file_of_the_user_s_own_is_not_replaced(tmp_path, capsys):
    assert main(["examples", str(tmp_path)]) == 0
    (tmp_path / "run_dpo.sh").write_text("my own\n")
    (tmp_path / "serve.sh").unlink()
    (tmp_path / "notes.txt").write_text("mine\n")
    assert main(["examples", str(tmp_path)]) == 2
    assert "run_dpo.sh there is another than the package's" in capsys.readouterr().err
    assert (tmp_path / "run_dpo.sh").read_text() == "my own\n" and not (tmp_path / "serve.sh").exists()
    assert main(["examples", str(tmp_path), "--overwrite"]) == 0
    assert files(tmp_path) == files(ROOT / "examples") | {"notes.txt": b"mine\n"}


def test_those_beside_the_installed_modules_come_first(tmp_path, monkeypatch):
    package = tmp_path / "verl_aiops"
    (package / "cli").mkdir(parents=True)
    shutil.copytree(ROOT / "examples", package / "examples")
    monkeypatch.setattr(examples, "__file__", str(package / "cli" / "examples.py"))
    assert examples.examples_folder() == package / "examples"
    shutil.rmtree(package / "examples")
    with pytest.raises(examples.ExamplesError, match="install verl-aiops anew"):
        examples.examples_folder()


def quickstart(tmp_path, installed=True, **env):
    """quickstart.sh outside a checkout, in tmp_path/work, with commands that only say how they were called."""
    assert main(["examples", str(tmp_path / "some where"), "--overwrite"]) == 0
    programs, work = tmp_path / "programs", tmp_path / "work"
    for folder in (programs, work):
        folder.mkdir(exist_ok=True)
    for name in ["python3", *(["verl-aiops"] if installed else [])]:
        (programs / name).write_text(f'#!/bin/bash\necho "verl-aiops: {name} $*"\n')
        (programs / name).chmod(0o755)
    return work, subprocess.run(
        ["bash", str(tmp_path / "some where" / "quickstart.sh")],
        cwd=work,
        env={"PATH": f"{programs}:/usr/bin:/bin"} | env,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("installed", [True, False])
def test_quickstart_outside_a_checkout_uses_the_environment_it_is_in(tmp_path, installed):
    work, done = quickstart(tmp_path, installed)
    if installed:
        assert done.returncode == 0, done.stderr
        assert "python3 -m verl.trainer.main_ppo" in done.stdout and "verl-aiops before-after" in done.stdout
        assert (work / "runs" / "quickstart" / "train.log").is_file()
    else:
        assert done.returncode == 1 and "no command verl-aiops" in done.stderr
        assert os.listdir(work) == []


def test_quickstart_keeps_the_run_before(tmp_path):
    for number in range(3):
        work, done = quickstart(tmp_path, RUN="my run")
        assert done.returncode == 0, done.stderr
        assert ("the run before this one is in my run.old" in done.stdout) == (number > 0)
        assert sorted(os.listdir(work)) == ["my run", *(["my run.old"] if number else [])]
        assert [(work / f"my run.old/{n}").exists() for n in range(number)] == [n == number - 1 for n in range(number)]
        (work / "my run" / str(number)).touch()


@pytest.mark.parametrize("foreign", ["mine", "mine.old"])
def test_quickstart_removes_nothing_that_it_has_not_made(tmp_path, foreign):
    work = tmp_path / "work"
    for name in {"mine", foreign}:
        (work / name).mkdir(parents=True)
        (work / name / ("thesis.tex" if name == foreign else "train.log")).touch()
    _, done = quickstart(tmp_path, RUN="mine")
    assert done.returncode == 1 and f"{foreign} is there and holds no run of this script" in done.stderr
    assert (work / foreign / "thesis.tex").exists()


def test_a_wheel_s_examples_are_written_by_its_own_command(tmp_path):
    """Built from a copy; its modules alone on the path."""
    source = tmp_path / "source"
    for name in ("verl_aiops", "hydra_plugins", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; out = sys.argv[1]; build_meta.build_wheel(out)"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "verl_aiops.cli", "examples", str(tmp_path / "written")]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    assert files(tmp_path / "written") == files(ROOT / "examples")
