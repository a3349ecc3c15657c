"""`verl-aiops import`: detection, files written, notices, errors; and what the package needs for it."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from import_harness import (
    make_loghub,
    make_nezha,
    make_openrca,
    nezha_fault,
    petshop_issue,
    petshop_metrics,
    rocket_mapping,
)

import verl_aiops
from verl_aiops.cli.main import main
from verl_aiops.incidents import IncidentError, OutputExistsError
from verl_aiops.incidents.importers import SOURCES, built_in, detect, import_incidents, load_mapping

ROOT = Path(__file__).resolve().parents[2]
EVENTS = ["E1", "E1", "E2", "E1", "E1", "E1", "E2", "E1"]


def make(name, root):
    if name == "loghub":
        make_loghub(root, EVENTS)
    elif name == "nezha":
        make_nezha(root, [nezha_fault("10:00:30", "ts-cart", "cpu_contention")])
    elif name == "openrca":
        make_openrca(root)
    else:
        series = {("Shop", "latency", "Average"): [1.0], ("till", "latency", "p90"): [2.0]}
        petshop_metrics(root / "dataset" / "high_traffic" / "noissue" / "metrics.csv", series)
        petshop_issue(root / "dataset/high_traffic/test/issue_0", "till", "latency", "searchdelay", series)
    return root


def arguments(name, tmp_path):
    mapping = ["--mapping", str(rocket_mapping(tmp_path))] if name == "loghub" else []
    return [str(make(name, tmp_path / name)), "--out", str(tmp_path / f"{name}.jsonl"), *mapping]


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_set_is_known_by_its_files(name, tmp_path, capsys):
    assert detect(make(name, tmp_path / name)).name == name
    assert main(["import", "auto", *arguments(name, tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert SOURCES[name].title in printed and SOURCES[name].citation[:40] in printed
    licence = (tmp_path / f"{name}.jsonl.LICENCE.txt").read_text(encoding="utf-8")
    assert SOURCES[name].homepage in licence and SOURCES[name].licence[:30] in licence
    assert [json.loads(line)["id"][: len(name)] for line in (tmp_path / f"{name}.jsonl").open()][0] == name


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_input_gives_the_same_bytes(name, tmp_path):
    assert main(["import", name, *arguments(name, tmp_path)]) == 0
    first = (tmp_path / f"{name}.jsonl").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "verl_aiops.cli", "import", name, *arguments(name, tmp_path), "--overwrite"],
        capture_output=True,
        text=True,
        timeout=60,
        # Nothing may depend on the order of a set.
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / f"{name}.jsonl").read_bytes() == first


def test_the_authors_notice_goes_with_the_file(tmp_path):
    assert main(["import", "loghub", *arguments("loghub", tmp_path)]) == 0
    assert "Terms of the rocket logs." in (tmp_path / "loghub.jsonl.LICENCE.txt").read_text()
    report = import_incidents("openrca", make("openrca", tmp_path / "rca"), tmp_path / "rca.jsonl")
    assert "was not in the folder read" in report.licence.read_text()


def test_list_shows_every_source_with_its_licence_and_mapping(capsys):
    assert main(["import", "--list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name, source in SOURCES.items():
        assert f"{name}: {source.title}" in printed and source.licence in printed and str(built_in(name)) in printed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "found no SOURCE; --list shows the sources"),
        (["loghub"], "found no PATH"),
        (["loghub", "{tmp}"], "found no --out FILE.jsonl"),
        (["tape", "{tmp}", "--out", "{tmp}/a.jsonl"], "source 'tape': expected one of loghub, nezha"),
        (["auto", "{tmp}", "--out", "{tmp}/a.jsonl"], "found none of them; name the source instead of 'auto'"),
        (["loghub", "{tmp}", "--out", "{tmp}/a.csv"], "let the name end in .jsonl"),
        (["loghub", "{tmp}/none", "--out", "{tmp}/a.jsonl"], "none: no such folder"),
        (["loghub", "{tmp}/taken.jsonl", "--out", "{tmp}/a.jsonl"], "expected the folder of a data set, found a file"),
        (["nezha", "{tmp}", "--out", "{tmp}/a.jsonl"], "expected a folder rca_data with one folder for each day"),
        (["petshop", "{tmp}", "--out", "{tmp}/a.jsonl"], "expected a folder dataset with one folder for each scenario"),
        (["openrca", "{tmp}", "--out", "{tmp}/a.jsonl"], "expected <system>/record.csv and query.csv"),
        (["loghub", "{tmp}", "--out", "{tmp}/a.jsonl"], "no incident could be made of it"),
        (["loghub", "{tmp}", "--out", "{tmp}/taken.jsonl"], "taken.jsonl: is already there; pass --overwrite"),
        (["nezha", "{tmp}", "--out", "{tmp}/a.jsonl", "--mapping", "{tmp}/none.yaml"], "none.yaml: no such file"),
        (
            ["nezha", "{tmp}", "--out", "{tmp}/a.jsonl", "--mapping", "{tmp}/taken.jsonl"],
            "expected a section with the keys",
        ),
    ],
)
def test_errors_are_one_line_and_code_2(tmp_path, capsys, given, message):
    (tmp_path / "taken.jsonl").write_text("mine")
    assert main(["import", *(argument.format(tmp=tmp_path) for argument in given)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("verl-aiops: error: ") and printed.err.count("\n") == 1
    assert message in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.jsonl"]


def test_two_data_sets_in_one_folder_are_not_guessed(tmp_path):
    make("nezha", tmp_path)
    make("openrca", tmp_path)
    with pytest.raises(IncidentError, match="found nezha and openrca; name the source"):
        detect(tmp_path)


def test_a_notice_that_is_there_is_not_replaced(tmp_path):
    root = make("openrca", tmp_path / "rca")
    (tmp_path / "a.jsonl.LICENCE.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"a.jsonl.LICENCE.txt: is already there"):
        import_incidents("openrca", root, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_what_an_incident_cannot_hold_names_the_data_set(tmp_path):
    records = [["pod", "Fox <|im_end|>", "1614841020.0", "", "high CPU usage"]]
    root = make_openrca(tmp_path / "rca", records, [["task_1", "When?", ""]])
    with pytest.raises(IncidentError, match=r"rca: field 'service': expected a plain name, found the chat-template"):
        import_incidents("openrca", root, tmp_path / "a.jsonl")
    assert not list(tmp_path.glob("*a.jsonl*"))


def test_imported_files_build_training_data(tmp_path):
    assert main(["import", "nezha", *arguments("nezha", tmp_path)]) == 0
    out = tmp_path / "sft.parquet"
    assert main(["build-sft", "--out", str(out), "--incidents", str(tmp_path / "nezha.jsonl"), "--val-share", "0"]) == 0
    assert out.exists()


def test_the_command_needs_neither_torch_nor_verl(tmp_path):
    code = (
        "import sys; from verl_aiops.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'verl', 'transformers', 'ray', 'pandas'} & set(sys.modules);"
        "sys.exit(code or sorted(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "import", "nezha", *arguments("nezha", tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_mappings_are_package_data():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["verl_aiops"].split()
    for name in SOURCES:
        # Where the package lies: beside the tests, or installed elsewhere.
        path = built_in(name).relative_to(Path(verl_aiops.__file__).parent).as_posix()
        assert any(fnmatch(path, pattern) for pattern in patterns), path
        assert load_mapping(built_in(name)).value


def test_no_importer_imports_anything_of_ours_but_incidents():
    folder = ROOT / "verl_aiops" / "incidents" / "importers"
    for path in folder.glob("*.py"):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        modules = [words[1] for words in lines if words[:1] in (["from"], ["import"]) and len(words) > 1]
        # files.py and inputs know of nothing else of ours
        ours = ("verl_aiops.incidents.", "verl_aiops.inputs.")
        modules = [name for name in modules if name != "verl_aiops.files" and not name.startswith(ours)]
        assert not [name for name in modules if name.startswith((".", "verl", "torch"))], path


def test_the_docs_name_every_source_with_its_home_venue_and_mapping():
    docs = (ROOT / "docs" / "import.md").read_text(encoding="utf-8")
    for name, source in SOURCES.items():
        venue = source.citation.rstrip(".").split(". ")[-1].partition(" (")[0]
        assert f"`{name}`" in docs and f"]({source.homepage})" in docs and venue in docs
        assert f"`{built_in(name).name}`" in docs
