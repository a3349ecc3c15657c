"""Where metrics go, and that a resume keeps those of the steps before it."""

import json
import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl_aiops.trainers.runs.log import KeptMetrics, RunLog, own_places


def _lines(*steps):
    rows = ({"step": step, "data": {"actor/loss": float(step)}} for step in steps)
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("TENSORBOARD_DIR", "VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT"):
        # so that what the code under test sets is undone
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


class _Verl:
    """verl's loop, as far as its trackers go: it opens them, then takes ``ends`` steps."""

    def fit(self, agent_loop_manager):
        from verl.utils.tracking import Tracking

        trainer = self.config.trainer
        self.logger = Tracking(trainer.project_name, trainer.experiment_name, list(trainer.logger))
        for step in range(self.global_steps + 1, self.ends + 1):
            self.logger.log({"actor/loss": float(step)}, step=step)
        self.logger.finish()


class _Run(RunLog, _Verl):
    def __init__(self, root, start, ends, loggers=("file",), **trainer):
        trainer = {"default_local_dir": str(root), "logger": list(loggers), "val_only": False, **trainer}
        trainer |= {"project_name": "project", "experiment_name": "name"}
        self.config = OmegaConf.create({"trainer": trainer})
        self.global_steps, self.ends, self.total_training_steps = start, ends, ends


def test_a_resumed_run_keeps_the_lines_up_to_its_step(tmp_path):
    _Run(tmp_path, 0, 5).fit(None)
    _Run(tmp_path, 3, 6).fit(None)
    assert (tmp_path / "metrics.jsonl").read_text() == _lines(1, 2, 3, 4, 5, 6)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_run_with_nothing_left_leaves_the_file_alone(tmp_path, capsys):
    _Run(tmp_path, 0, 4).fit(None)
    _Run(tmp_path, 4, 4).fit(None)
    assert (tmp_path / "metrics.jsonl").read_text() == _lines(1, 2, 3, 4)
    assert "nothing left to train" in capsys.readouterr().out


def test_validation_alone_adds_its_lines(tmp_path):
    _Run(tmp_path, 0, 4).fit(None)
    _Run(tmp_path, 4, 4, val_only=True).fit(None)
    assert (tmp_path / "metrics.jsonl").read_text() == _lines(1, 2, 3, 4)


def test_a_run_from_the_beginning_sets_an_older_file_aside(tmp_path, environment, capsys):
    path = tmp_path / "shared.jsonl"
    environment.setenv("VERL_FILE_LOGGER_PATH", str(path))
    for ends in (2, 3, 4):
        _Run(tmp_path / "run", 0, ends).fit(None)
    assert path.read_text() == _lines(1, 2, 3, 4)
    assert (tmp_path / "shared.jsonl.1").read_text() == _lines(1, 2)
    assert (tmp_path / "shared.jsonl.2").read_text() == _lines(1, 2, 3)
    assert "they are now" in capsys.readouterr().out


def test_places_named_in_the_environment_are_kept(tmp_path, environment):
    environment.setenv("VERL_FILE_LOGGER_ROOT", str(tmp_path / "root"))
    environment.setenv("TENSORBOARD_DIR", str(tmp_path / "events"))
    for start, ends in ((0, 2), (2, 3)):
        _Run(tmp_path / "run", start, ends).fit(None)
    assert (tmp_path / "root" / "project" / "name.jsonl").read_text() == _lines(1, 2, 3)
    assert os.environ["TENSORBOARD_DIR"] == str(tmp_path / "events") and not (tmp_path / "run").exists()


def test_each_run_has_a_folder_for_tensorboard_and_shows_each_step_once(tmp_path, environment):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for root in ("a", "b"):
        environment.delenv("TENSORBOARD_DIR", raising=False)
        environment.delenv("VERL_FILE_LOGGER_PATH", raising=False)
        for start, ends in ((0, 5), (3, 6)):
            _Run(tmp_path / root, start, ends, loggers=("tensorboard", "file")).fit(None)
        events = EventAccumulator(str(tmp_path / root / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("actor/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_line_cut_short_or_not_the_loggers_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_lines(1, 2, 3) + "a note\n" + '{"step": 4, "da')
    kept = KeptMetrics(path, 2)
    with open(path, "wb", buffering=0) as file:
        kept.put_back(file)
    assert path.read_text() == _lines(1, 2) + "a note\n"


def test_a_process_that_ended_between_opening_and_writing_back_loses_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_lines(1, 2, 3))
    KeptMetrics(path, 3)
    path.write_bytes(b"")  # verl has opened it; then the machine fails
    kept = KeptMetrics(path, 2)
    with open(path, "wb", buffering=0) as file:
        kept.put_back(file)
    assert path.read_text() == _lines(1, 2) and os.listdir(tmp_path) == ["metrics.jsonl"]


def test_verls_task_runner_can_ask_for_a_logger_that_is_not_there_yet(tmp_path):
    assert getattr(_Run(tmp_path, 0, 1), "logger", None) is None


def test_a_cut_save_leaves_a_place_for_the_logs(tmp_path):
    own_places(SimpleNamespace(default_local_dir=str(tmp_path / "new")))
    assert os.environ["VERL_FILE_LOGGER_PATH"] == str(tmp_path / "new" / "metrics.jsonl")
    assert os.environ["TENSORBOARD_DIR"] == str(tmp_path / "new" / "tensorboard")
