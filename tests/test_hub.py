"""Names on a hub: rows of a data set become a file, a model's files a folder, and what is not there is said."""

import shutil

import datasets
import huggingface_hub
import pyarrow.parquet as pq
import pytest

from verl_aiops.cli.main import main
from verl_aiops.hub import HubError, fetch_rows, may_be_on_a_hub
from verl_aiops.models.folders import ModelFolderError, find_model

ROWS = [{"prompt": f"q {i}", "chosen": "yes", "rejected": "no"} for i in range(4)]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with data sets; hub["org/name"] = {split: rows}."""
    sets = {}

    def splits(name):
        if name not in sets:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub")
        return list(sets[name])

    monkeypatch.setattr(datasets, "get_dataset_split_names", splits)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(sets[name][split]))
    monkeypatch.setenv("VERL_AIOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    return sets


@pytest.mark.parametrize(
    "name, may",
    [
        ("org/name", True),
        ("trl-lib/ultrafeedback_binarized:test", True),
        ("org/name.v2", True),
        ("there/name", False),  # a path into a folder that is there
        ("runs/pairs.jsonl", False),
        ("a/b/c", False),
        ("/org/name", False),
        ("../name", False),
        ("name", False),
        ("org/", False),
    ],
)
def test_what_is_written_as_a_name_on_a_hub(tmp_path, monkeypatch, name, may):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert may_be_on_a_hub(name) is may


def test_rows_of_a_split_become_a_file_named_by_its_content(hub):
    hub["org/name"] = {"train": ROWS, "test": ROWS[:1], "extra": ROWS[1:3]}
    path = fetch_rows("org/name", "--data")
    assert pq.read_table(path).to_pylist() == ROWS
    assert path == fetch_rows("org/name", "--data") and path.parent.name == "org--name"
    assert pq.read_table(fetch_rows("org/name", "--val", held_out=True)).to_pylist() == ROWS[:1]
    assert pq.read_table(fetch_rows("org/name:extra", "--val", held_out=True)).to_pylist() == ROWS[1:3]
    hub["org/name"]["train"] = ROWS[:2]  # another revision takes no file's place
    other = fetch_rows("org/name", "--data")
    assert other != path and pq.read_table(path).to_pylist() == ROWS
    assert not [left for left in path.parent.iterdir() if len(left.stem) < 12]


@pytest.mark.parametrize(
    "name, held_out, said",
    [
        (
            "org/none",
            False,
            "--data org/none: no such file, and as a data set on the hub it cannot be loaded: Couldn't",
        ),
        ("org/two", True, "which of its splits is meant, train, test, validation? Say it: org/two:test"),
        ("org/two:tset", True, "it has no split 'tset', but train, test, validation"),
        ("org/odd", False, "which of its splits is meant, a, b? Say it: org/odd:a"),
    ],
)
def test_what_a_hub_does_not_give_is_said(hub, name, held_out, said):
    hub |= {"org/two": dict.fromkeys(("train", "test", "validation"), ROWS), "org/odd": {"a": ROWS, "b": ROWS}}
    with pytest.raises(HubError) as error:
        fetch_rows(name, "--val" if held_out else "--data", held_out=held_out)
    assert said in str(error.value)


def test_fronts_take_a_data_set_by_name(hub, tmp_path, capsys):
    hub["org/name"] = {"train": ROWS, "test": ROWS}
    least = ["--model", "org/m", "--data", "org/name", "--val", "org/name", "--out", str(tmp_path / "out")]
    assert main(["dpo", *least, "--gpus", "0", "--print"]) == 0
    shown = capsys.readouterr().out
    assert f"data.train_files={tmp_path}/cache/hub/org--name/train-" in shown and "/org--name/test-" in shown


def test_without_a_network_there_is_one_message(tmp_path, monkeypatch, capsys):
    """Through the real libraries, which these variables keep off the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["dpo", "--model", "m", "--data", "org/no-such-set", "--out", "out", "--gpus", "0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("verl-aiops: error: --data org/no-such-set: no such file, and as a data set on the hub")
    assert "HF_HUB_OFFLINE is set, so no hub is asked: unset it, or name a file" in said and said.count("\n") == 1
    with pytest.raises(HubError, match="--model org/no-such-model: no such folder, and as a model on the hub"):
        find_model("org/no-such-model")


def test_a_model_that_is_kept_here_is_found_by_its_name(tiny_model_dir, tmp_path, monkeypatch):
    """As huggingface_hub keeps them, so that the real library finds it without a network."""
    kept = tmp_path / "models--org--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_model_dir, kept / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    found = find_model("org/tiny")
    assert found.settings == kept / "snapshots" / "abc" and found.path == "org/tiny"
    assert found.fingerprint() == find_model(str(tiny_model_dir)).fingerprint()
    with pytest.raises(ModelFolderError, match="runs/dpo/nothing: no such folder"):
        find_model("runs/dpo/nothing")
