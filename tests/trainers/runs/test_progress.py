"""How far the writing of a large folder is."""

import re
import time

import pytest

from verl_aiops.trainers.runs.progress import told_while_written


def test_what_is_there_is_told_while_it_grows(tmp_path, capsys):
    with told_while_written(tmp_path, "model", 300_000_000, every=0.02):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "weights").write_bytes(b"0" * 1_500_000)
        until = time.monotonic() + 10
        while "1.5 MB" not in (said := capsys.readouterr().out) and time.monotonic() < until:
            time.sleep(0.01)
    assert re.search(r"verl-aiops: model: 1\.5 MB of 300\.0 MB|0\.3 GB written, \d+ s", said)
    assert re.search(r"verl-aiops: model: 1\.5 MB written in \d+ s", capsys.readouterr().out)


def test_what_is_there_soon_is_not_spoken_of_and_errors_pass(tmp_path, capsys):
    with told_while_written(tmp_path, "model", None):
        pass
    with pytest.raises(ValueError, match="as it came"), told_while_written(tmp_path, "model", None):
        raise ValueError("as it came")
    assert capsys.readouterr().out == ""
