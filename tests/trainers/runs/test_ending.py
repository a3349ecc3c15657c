"""A run that is stopped, or whose disk is full, ends with one line and its exit code."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
from omegaconf import OmegaConf

from verl_aiops.trainers.runs import ending
from verl_aiops.trainers.runs.ending import full_disk, install, where_to_resume, with_ending


@pytest.fixture
def config(tmp_path):
    trainer = {"default_local_dir": str(tmp_path / "run"), "resume_mode": "auto", "save_freq": 5}
    return OmegaConf.create({"trainer": {**trainer, "rollout_data_dir": None}})


def save(config, step):
    run = config.trainer.default_local_dir
    os.makedirs(f"{run}/global_step_{step}")
    with open(f"{run}/latest_checkpointed_iteration.txt", "w") as file:
        file.write(str(step))


def test_where_a_run_goes_on(config, tmp_path):
    assert f"No checkpoint was saved yet in {tmp_path}/run (trainer.save_freq=5)" in where_to_resume(config)
    save(config, 8)
    assert (
        where_to_resume(config) == f"Last checkpoint: {tmp_path}/run/global_step_8; the same command goes on from it."
    )
    config.trainer.resume_mode = "disable"
    assert "with trainer.resume_mode=auto" in where_to_resume(config)
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("12")  # another save was about to begin
    assert "No checkpoint was saved yet" in where_to_resume(config)


CHILD = """
    import os, signal, sys, time
    from omegaconf import OmegaConf
    from verl_aiops.trainers.runs import ending

    class Runner:
        def remote(self):
            print("started", flush=True)

    def run_ppo(config, task_runner_class):
        for number in (signal.SIGINT, signal.SIGTERM):  # as Ray does when it starts
            signal.signal(number, signal.SIG_DFL)
        task_runner_class.remote()
        time.sleep(60)

    trainer = {"default_local_dir": sys.argv[1], "resume_mode": "auto", "save_freq": 5, "rollout_data_dir": None}
    ending.with_ending(run_ppo)(OmegaConf.create({"trainer": trainer}), Runner())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_one_line(tmp_path, config, number):
    save(config, 8)
    command = [sys.executable, "-c", textwrap.dedent(CHILD), config.trainer.default_local_dir]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "started\n"
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, out) == (128 + number, "")
    name = signal.Signals(number).name
    folder = f"{config.trainer.default_local_dir}/global_step_8"
    assert err == f"verl-aiops: stopped by {name}. Last checkpoint: {folder}; the same command goes on from it.\n"


def raising(error):
    def run_ppo(config, task_runner_class):
        raise error

    return with_ending(run_ppo)


TORCH_FULL = (
    "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0; PytorchStreamWriter failed writing file"
)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError(f"ray::WorkerDict.save_checkpoint()\n{TORCH_FULL} data/0: file write failed"),
        RuntimeError("RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 160064 vs 159952"),
        RuntimeError("SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named(config, capsys, error, monkeypatch):
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(SystemExit) as left:
        raising(error)(config, None)
    assert left.value.code == 1
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"verl-aiops: error: .*/run: the disk is full \(.* free\)\. Free up space .*step 0 again\.\n", err
    )


def test_the_full_one_of_several_disks_is_named(config, monkeypatch, tmp_path):
    from types import SimpleNamespace

    config.trainer.rollout_data_dir = str(tmp_path / "other" / "rollouts")
    (tmp_path / "other").mkdir()
    free = {str(tmp_path): 10**10, str(tmp_path / "other"): 4096}
    monkeypatch.setattr(ending.shutil, "disk_usage", lambda p: SimpleNamespace(free=free.get(str(p), 10**10)))
    assert full_disk(OSError(28, "No space left on device"), config).startswith(f"{tmp_path}/other/rollouts: the disk")
    assert full_disk(ValueError("something else"), config) is None


def test_errors_of_ours_are_one_line_and_others_stay(config, capsys, monkeypatch):
    from verl_aiops.trainers.config import ConfigError

    monkeypatch.setattr("ray.shutdown", lambda: None)
    wrapped = RuntimeError("a traceback of forty lines")
    wrapped.cause = ConfigError("what a worker found")
    with pytest.raises(SystemExit):
        raising(wrapped)(config, None)
    assert capsys.readouterr().err.startswith("verl-aiops: error: what a worker found No checkpoint was saved yet")
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())(config, None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RuntimeError):
        raising(wrapped)(config, None)


def test_handlers_are_given_back(config):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert with_ending(lambda config, task_runner_class: 5)(config, None) == 5
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_verls_function_is_where_we_look_for_it(monkeypatch):
    """Guards the replacement: verl's ``main`` calls ``run_ppo`` by its name in the module, with two arguments."""
    import inspect

    from verl.trainer import main_ppo

    monkeypatch.setattr(main_ppo, "run_ppo", main_ppo.run_ppo)
    before = inspect.unwrap(main_ppo.run_ppo)
    assert list(inspect.signature(before).parameters) == ["config", "task_runner_class"]
    assert "run_ppo(config, task_runner_class=" in inspect.getsource(main_ppo)
    assert "task_runner_class.remote()" in inspect.getsource(before)
    install()
    assert main_ppo.run_ppo is not before and inspect.unwrap(main_ppo.run_ppo) is before
    first = main_ppo.run_ppo
    install()
    assert main_ppo.run_ppo is first  # once


def test_a_node_that_died_is_named_with_the_checkpoint(config, capsys, monkeypatch):
    """Those that live are known from the moment the run is handed over; Ray is asked again when it fails."""
    from types import SimpleNamespace

    def node(name, alive):
        return {"NodeID": name, "NodeManagerAddress": name, "NodeManagerHostname": "host", "Alive": alive}

    alive = iter([(True, True, False), (True, False, False)])
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [node(n, a) for n, a in zip("abc", next(alive))])
    monkeypatch.setattr("ray.shutdown", lambda: None)
    save(config, 8)

    def run_ppo(config, task_runner_class):
        task_runner_class.remote()
        raise RuntimeError("Read error [127.0.0.1]:29621: Connection reset by peer")

    with pytest.raises(SystemExit) as left:
        with_ending(run_ppo)(config, SimpleNamespace(remote=lambda: None))
    assert left.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "verl-aiops: error: node b (host) of the Ray cluster died, with the workers that ran there. Last"
    )
    assert err.endswith("global_step_8; the same command goes on from it.\n") and err.count("\n") == 1
