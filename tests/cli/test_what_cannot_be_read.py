"""Files and folders that a command cannot use: one line that names the path and what was expected, and exit code 2."""

import json
import os

import pytest

from verl_aiops.cli.command import said
from verl_aiops.cli.main import main
from verl_aiops.files import WriteError

PAIR = {"prompt": "Which?", "chosen": "db", "rejected": "web"}
SERVER = ["--endpoint", "http://127.0.0.1:9/v1", "--model", "m"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    (tmp_path / "bad.jsonl").write_text('{"foo": 1}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["build-rl", "--incidents", "folder", "--out", "o.parquet"], "folder: expected a file, found a folder"),
        (["feedback", "folder", "--out", "o.jsonl"], "folder: expected a file, found a folder"),
        (["triage", "folder", *SERVER], "folder: expected a file, found a folder"),
        (["triage", "empty.parquet", *SERVER], "empty.parquet, after row 0: not a readable parquet file"),
        (["build-rl", "--num-incidents", "3", "--prompts", "folder", "--out", "o.parquet"], "folder: expected a file,"),
        (["curves", "none.jsonl", "--out", "c.png"], "none.jsonl: no such file or folder"),
        (["curves", "folder", "--out", "c.png"], "folder: expected a file, found a folder"),
        (["serve-rm", "none"], "serve-rm: none: no such folder; name that of a reward model"),
        (["eval-pairs", "--model", "m", "--data", "pairs.jsonl", "--out", "file"], "--out file: expected a folder"),
        (["compare", "a", "b", "--out", "file"], "a: no such folder"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_one_line_says_which_path_and_what_was_expected(here, capsys, line, told):
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"verl-aiops: error: {told}") and err.count("\n") == 1 and "Errno" not in err


def test_answers_are_named_by_the_option_that_named_them(here, tiny_model_dir, capsys):
    assert main(["eval", "--rm", str(tiny_model_dir), "--answers", "folder", "--out", "o"]) == 2
    assert "error: --answers folder: expected a folder of `verl-aiops eval`" in capsys.readouterr().err


def test_data_that_cannot_be_read_leave_no_run_behind(here, tiny_model_dir, capsys):
    """The next command, with the file's right name, is not told of another run's settings."""
    for data in ("none.jsonl", "bad.jsonl"):
        assert main(["train-rm", "--data", data, "--model", str(tiny_model_dir), "--out", "rm"]) == 2
        assert data in capsys.readouterr().err and not (here / "rm").exists()


def test_what_the_system_says_is_told_with_the_path_before_it(here):
    with pytest.raises(OSError) as refused:
        open(here / "file" / "x")
    assert said(refused.value) == f"{here}/file/x: expected a folder above it, found a file"
    assert said(PermissionError(13, "Permission denied", "a\nb")) == "a\nb: permission denied"
    # our own words stand as they are, and so do those of others
    assert said(FileNotFoundError("x: no such file")) == "x: no such file"
    assert said(WriteError("o", OSError(30, "Read-only file system"))) == "o: cannot be written: read-only file system"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_tokenizer_that_the_disk_has_no_room_for_is_an_error_of_the_system(tmp_path):
    from verl_aiops.models.packaged import PROBE, write_tokenizer

    class Tokenizer:
        def encode(self, text):
            return type("Encoded", (), {"ids": [0]})

        def decode(self, ids):
            return PROBE

        def to_str(self, pretty):
            return "{}"

    os.symlink("/dev/full", tmp_path / "tokenizer.json")
    with pytest.raises(OSError, match="No space left on device"):
        write_tokenizer(Tokenizer(), tmp_path, longest=8, chat_template="", eos_token="</s>")
