"""The files that a host of the project reads: they name commands, extras and versions that are there."""

import re
from pathlib import Path

import pytest
import yaml

import verl_aiops

ROOT = Path(__file__).resolve().parents[1]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_commit_is_checked_as_continuous_integration_does():
    (local,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    hooks = {hook["entry"]: hook for hook in local["hooks"]}
    # with all of them given their files, or the configuration's
    assert [re.sub(r" \.$", "", line) for line in CI.splitlines() if line.startswith(("ruff", "mypy"))] == list(hooks)
    assert local["repo"] == "local" and {hook["language"] for hook in hooks.values()} == {"system"}
    assert hooks["mypy"]["pass_filenames"] is False


def test_the_workflow_runs_the_same_file_on_every_python():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    promised = re.findall(r"Python :: (3\.\d+)$", read("setup.cfg"), re.M)
    assert job["strategy"]["matrix"]["python"] == promised
    assert workflow["permissions"] == {"contents": "read"}


def test_the_newest_verl_is_looked_at_and_may_fail():
    (job,) = yaml.safe_load(read(".github/workflows/newest-verl.yml"))["jobs"].values()
    assert job["continue-on-error"] is True
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash scripts/newest_verl.sh"]
    named = re.findall(r"\btests/[\w/.]+", read("scripts/newest_verl.sh"))
    assert len(named) == 6 and all((ROOT / name).exists() for name in named)


def test_the_citation_is_of_this_version_and_invents_nobody():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert str(citation["version"]) == verl_aiops.__version__ and citation["license"] in read("setup.cfg")
    assert [author["name"] for author in citation["authors"]] == ["The verl-aiops developers"]
    assert {"cff-version", "message", "title"} <= set(citation)


@pytest.mark.parametrize("form", ["bug.yml", "wish.yml"])
def test_forms_are_whole(form):
    parsed = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{form}"))
    assert {"name", "description", "body"} <= set(parsed)
    names = [field["id"] for field in parsed["body"]]
    assert len(set(names)) == len(names)
    assert all(field["attributes"]["label"] for field in parsed["body"])


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_an_image_is_made_by_commands_and_extras_that_are_there(name):
    text = read(name)
    extras = read("setup.cfg").partition("[options.extras_require]")[2]
    named = re.search(r'"\.\[([^]]+)\]"', text)[1].replace(
        "${ENGINE}", re.search(r"ENGINE=(\w+)", text + "ENGINE=_")[1]
    )
    for extra in [*named.split(","), *re.findall(r"--build-arg ENGINE=(\w+)", text)]:
        assert re.search(rf"^{extra} =$", extras, re.M), extra
    for script in re.findall(r"/opt/examples/([\w.]+\.sh)", text):
        assert (ROOT / "examples" / script).is_file(), script
    for script in re.findall(r"\bscripts/[\w.]+", text):
        assert (ROOT / script).is_file(), script
    # where they lie is no checkout, so quickstart.sh makes no second environment
    assert "verl-aiops examples /opt/examples" in text and "WORKDIR /opt/verl-aiops" in text
    ignored = read(".dockerignore").split()
    assert not {"examples", "scripts", "constraints-cpu.txt", "setup.cfg"} & set(ignored) and ".git" in ignored
