"""What a run shows: from recorded streams of metrics and logs, and from children that stand for a trainer."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from verl_aiops.cli.fronts.console import Console, duration
from verl_aiops.cli.fronts.line import Line
from verl_aiops.cli.fronts.running import Tail, run_line
from verl_aiops.cli.fronts.tasks import BACKENDS, TASKS

DPO = {"actor/loss": 0.512, "rewards/margins": 0.31, "rewards/accuracies": 0.75, "timing_s/step": 3.0, "actor/lr": 1e-5}
FIGURES = {
    "dpo": (DPO, "loss 0.512  margin +0.310  acc 0.75"),
    "online-dpo": (
        {**DPO, "score/mean": 0.4, "reward/acc_main": 0.25},
        "loss 0.512  margin +0.310  acc 0.75  reward 0.400  right 0.25",
    ),
    "grpo": (
        {"critic/score/mean": 0.4, "reward/acc_main": 0.25, "reward/json_ok": 1.0, "actor/pg_loss": -0.01},
        "reward 0.400  right 0.25  json 1.00  loss -0.0100",
    ),
    "sft": ({"train/loss": 2.054, "train/lr": 2e-5}, "loss 2.054  lr 2.00e-05"),
    "rm": (
        {"actor/loss": 0.69, "rewards/accuracies": 0.5, "rewards/margins": 0.1, "rewards/std": 0.5},
        "loss 0.690  margin +0.100  acc 0.50  std 0.50",
    ),
}


def entry(step, data):
    return json.dumps({"step": step, "data": data})


@pytest.fixture
def console():
    """console(task, total): a Console whose clock stands, and the lines that it has shown."""

    def make(task="dpo", total=None):
        shown = []
        return Console(TASKS.get(task) or BACKENDS["rm"][task], "train.log", shown.append, total, lambda: 0.0), shown

    return make


def test_forty_steps_are_forty_lines(console):
    made, shown = console()
    made.said("(TaskRunner pid=7) verl-aiops: training: steps 1 to 40")
    for step in range(1, 41):
        made.logged(entry(step, DPO))
    assert len(shown) == 40
    assert shown[11] == "step 12/40  loss 0.512  margin +0.310  acc 0.75  3.0 s  eta 1:24"
    assert shown[39] == "step 40/40  loss 0.512  margin +0.310  acc 0.75  3.0 s"


@pytest.mark.parametrize("task", FIGURES)
def test_the_figures_of_each_task(console, task):
    made, shown = console(task)
    data, said = FIGURES[task]
    made.logged(entry(3, {"timing_s/step": 2.0, **data}))
    assert shown == [f"step 3  {said}  {data.get('timing_s/step', 2.0):.1f} s"]
    assert set(FIGURES) == set(TASKS)


def test_the_figures_of_trls_trainer(console):
    made, shown = console("trl")
    made.logged(entry(3, {"timing_s/step": 2.0, "actor/loss": 0.69, "accuracy": 0.5, "margin": 0.1}))
    assert shown == ["step 3  loss 0.690  margin +0.100  acc 0.50  2.0 s"]


def test_held_out_figures_have_a_line_of_their_own(console):
    made, shown = console()
    made.logged(entry(0, {"val/loss": 0.693147, "val/rewards/margins": 0.0, "val/rewards/accuracies": 0.0}))
    made.logged(entry(1, {**DPO, "val/loss": 0.6}))
    assert shown[0] == "held out, step 0:  loss 0.693  margin +0.000  acc 0.00"
    assert shown[1].startswith("step 1  loss 0.512") and shown[2] == "held out, step 1:  loss 0.600"
    rl, shown = console("grpo")
    rl.logged(entry(0, {"val-core/x/acc/mean@1": 0.5, "val-aux/x/score/mean@1": 0.3, "val-aux/x/json_ok/mean@1": 1}))
    assert shown == ["held out, step 0:  reward 0.300  right 0.50  json 1.00"]


def test_a_validation_without_a_whole_batch_says_why(console):
    made, shown = console("sft")
    made.logged(entry(3, {"val/loss": None}))
    made.logged(entry(6, {"val/loss": 1.5}))
    assert shown[0].startswith("held out, step 3:  loss nan  (fewer held-out rows than a batch")
    assert shown[1] == "held out, step 6:  loss 1.500"


def test_a_number_that_is_not_finite_is_shown_as_such(console):
    made, shown = console()
    made.logged(entry(1, {**DPO, "actor/loss": None, "timing_s/step": None}))
    assert shown == ["step 1  loss nan  margin +0.310  acc 0.75"]


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"step": "x", "data": {}}', '{"step": 1}', '{"step": 1, "data": 3}'])
def test_a_line_that_is_no_entry_is_left_out(console, line):
    made, shown = console()
    made.logged(line)
    assert shown == []


@pytest.mark.parametrize(
    "task, line, total",
    [
        ("sft", "Epoch 1/3:   5%|5         | 1/20 [00:03<01:00,  3.0s/it]", 60),
        ("trl", "  2%|2         | 1/40 [00:03<02:00,  3.0s/it]", 40),
        ("trl", "Map: 100%|####| 16/16 [00:00<00:00]", None),
        ("dpo", "verl-aiops: training: steps 21 to 40", 40),
    ],
)
def test_where_the_number_of_steps_is_from(console, task, line, total):
    made, shown = console(task)
    made.said(line)
    assert made.total == total and shown == []


def test_what_of_a_log_reaches_the_console(console):
    made, shown = console()
    for line in (
        "{'actor': {'strategy': 'fsdp2'},",
        " 'algorithm': {'adv_estimator': 'dpo'}}",
        "verl-aiops: set for this run:",
        "  trainer.total_epochs=1  (why)",
        "/site-packages/x.py:41: UserWarning: something",
        "  warnings.warn(x)",
        "\x1b[36m(TaskRunner pid=12)\x1b[0m verl-aiops: train: 55 of 55 pairs kept",
        "(TaskRunner pid=12) step:1 - actor/loss:0.69",
        "verl-aiops: error: 2 things keep this run from starting:",
        "  1. one",
        "  2. other \x1b]0;evil\x07",
        "  File x, line 3",
    ):
        made.said(line)
    assert shown == [
        "verl-aiops: filled in what the line leaves open: train.log",
        "verl-aiops: train: 55 of 55 pairs kept",
        "verl-aiops: error: 2 things keep this run from starting:",
        "  1. one",
        "  2. other \\x1b]0;evil\\x07",
        "  File x, line 3",
    ]
    assert made.told_error


@pytest.mark.parametrize(
    "noise",
    [
        "(TaskRunner pid=7) step:1 - actor/loss:0.69",
        "2026-12-01 10:00:00,123\tINFO worker.py:2038 -- gone",
        "INFO:2026-12-01 10:00:00:saving",
        "/site-packages/x.py:41: UserWarning: something",
        "Traceback (most recent call last):",
        "Training Progress:  25%|##   | 1/4 [00:01<00:03]",
    ],
)
def test_an_error_of_ours_is_shown_to_its_end(console, noise):
    """Its last line says how to mend it, and is not indented."""
    made, shown = console()
    error = [
        "verl-aiops: error: 3 of 9 rows are too long:",
        "  a, row 1: 700",
        "  ... and 2 more",
        "Raise it, or drop.",
    ]
    for line in [*error, "", "2 rows cannot be used:", "  b, row 2: why", noise, "what comes behind"]:
        made.said(line)
    assert shown == [*error, "2 rows cannot be used:", "  b, row 2: why"]


def test_last_words_are_the_last_traceback_without_progress(console):
    made, _ = console()
    lines = (
        ["Traceback (most recent call last):", "old"] + ["x"] * 50 + ["Traceback (most recent call last):", "  File"]
    )
    for line in (*lines, "Writing:  50%|###   | 1/2 [00:00<00:01]", "KeyError: 'a'"):
        made.said(line)
    assert made.last_words() == ["Traceback (most recent call last):", "  File", "KeyError: 'a'"]


def test_durations():
    assert [duration(s) for s in (0, 84, 3599.6, 7389)] == ["0:00", "1:24", "1:00:00", "2:03:09"]


def test_a_file_is_followed_from_line_to_line(tmp_path):
    path = tmp_path / "f"
    tail = Tail(path, frozenset({b"old"}))
    assert list(tail.lines()) == []
    path.write_bytes(b"old\none\rtw")
    assert list(tail.lines()) == ["one"]
    with path.open("ab") as file:
        file.write(b"o\nrest")
    assert list(tail.lines()) == ["two"] and list(tail.end()) == ["rest"]
    path.rename(tmp_path / "aside")  # as a new run sets the metrics of an earlier one aside
    path.write_bytes(b"a line of another file\n")
    assert list(tail.lines()) == ["a line of another file"]
    path.write_bytes(b"shorter\n")  # as one that goes on opens them anew
    assert list(tail.lines()) == ["shorter"]


CHILD = """
import json, os, signal, sys, time
out = sys.argv[1].partition("=")[2]
print("{config dump}")
print("verl-aiops: training: steps 1 to 2", flush=True)
with open(os.path.join(out, "metrics.jsonl"), "a") as file:
    for step in (1, 2):
        data = {"actor/loss": 0.5, "timing_s/step": 1.0}
        file.write(json.dumps({"step": step, "data": data}) + "\\n")
"""


@pytest.fixture
def child(tmp_path):
    """child(more): the line of a Python program that does as a trainer, and then `more`."""

    def make(more=""):
        out = tmp_path / "out"
        setting = f"trainer.default_local_dir={out}"
        return Line(("-c", CHILD + more, setting), (setting,), out, out / "train.log", out / "metrics.jsonl")

    return make


def test_a_run_shows_its_steps_and_logs_the_rest(child, capfd):
    assert run_line(TASKS["dpo"], child()) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[:2] == ["step 1/2  loss 0.500  1.0 s  eta 0:01", "step 2/2  loss 0.500  1.0 s"] and len(shown) == 3
    log = child().log.read_text()
    assert "{config dump}" in log
    # again in the same folder: the lines of before are not shown as new, and the log is kept
    line = child("raise KeyError('lost')")
    line.metrics.write_text(entry(1, {"actor/loss": 0.9}) + "\n")
    assert run_line(TASKS["dpo"], line) == 1
    shown = capfd.readouterr().out
    assert "0.900" not in shown and "KeyError: 'lost'" in shown and "{config dump}" not in shown
    assert "exit code 1 after 0:0" in shown and line.log.read_text().startswith(log)


def test_verbose_shows_everything(child, capfd):
    assert run_line(TASKS["dpo"], child(), verbose=True) == 0
    shown = capfd.readouterr().out
    assert "{config dump}" in shown and "step 1/2" not in shown


def test_exit_codes_and_signals_are_the_runs(child, capfd):
    assert run_line(TASKS["dpo"], child("sys.exit(7)")) == 7
    assert run_line(TASKS["dpo"], child("os.kill(os.getpid(), signal.SIGKILL)")) == 137
    assert "ended by SIGKILL" in capfd.readouterr().out


def code_when_sent(number, line):
    """The exit code of a run whose front gets a signal once the run says that it is ready."""

    def send():
        while not line.log.is_file() or "ready" not in line.log.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    code = run_line(TASKS["dpo"], line)
    thread.join()
    return code


def test_a_signal_is_passed_on(child, capfd):
    more = "signal.signal(signal.SIGTERM, lambda *_: (print('verl-aiops: stopped'), sys.exit(3)))\n"
    line = child(more + "print('verl-aiops: ready', flush=True)\ntime.sleep(60)")
    assert code_when_sent(signal.SIGTERM, line) == 3
    assert "verl-aiops: stopped" in capfd.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("raise KeyboardInterrupt", 130, "stopped by SIGINT"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 130, "stopped by SIGINT"),
        ("os._exit(130)", 130, "stopped by SIGINT"),
        ("print('verl-aiops: error: bad', flush=True)\n    os._exit(1)", 1, "exit code 1"),
    ],
)
def test_a_run_that_is_stopped_while_it_loads_shows_no_traceback(child, capfd, ending, code, said):
    """As Hydra, Ray's C++ or the trainer end on SIGINT, which is passed on: `kill -INT` reaches one process alone."""
    line = child(
        f"def interrupted(*_):\n    {ending}\n"
        "signal.signal(signal.SIGINT, interrupted)\nprint('verl-aiops: ready', flush=True)\ntime.sleep(60)"
    )
    assert code_when_sent(signal.SIGINT, line) == code
    shown = capfd.readouterr().out
    assert f"{said} after 0:0" in shown and "KeyboardInterrupt" not in shown and "SIGSEGV" not in shown
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_run_is_in_no_terminal_s_group(child, capfd):
    """Else Ctrl-C would reach it by itself and through us, and the second one ends a run at once."""
    assert run_line(TASKS["dpo"], child("print('verl-aiops: own group', os.getpgrp() == os.getpid())")) == 0
    assert "own group True" in capfd.readouterr().out


def test_sft_leaves_the_model_of_its_last_checkpoint(child, tmp_path, capfd):
    line = child()
    folder = line.out / "global_step_2" / "huggingface"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("new")
    (folder / "model.safetensors").touch(mode=0o600)  # as safetensors writes it
    (line.out / "huggingface").mkdir()
    (line.out / "huggingface" / "old").write_text("")
    (line.out / "latest_checkpointed_iteration.txt").write_text("2\n")
    line.metrics.write_text("earlier\n")
    assert run_line(TASKS["sft"], line) == 0
    made = {path.name: path.stat() for path in (line.out / "huggingface").iterdir()}
    assert sorted(made) == ["README.md", "config.json", "model.safetensors"]
    # weights are not on the disk twice, what may be edited is; whoever reads the rest reads both
    assert made["model.safetensors"].st_ino == (folder / "model.safetensors").stat().st_ino
    assert made["config.json"].st_ino != (folder / "config.json").stat().st_ino
    assert made["model.safetensors"].st_mode == made["config.json"].st_mode
    assert (line.out / "metrics.jsonl.1").read_text() == "earlier\n"
    assert f"model for the next stage: {line.out / 'huggingface'}" in capfd.readouterr().out


def test_its_card_and_push(child, monkeypatch, capfd):
    from verl_aiops.models import push

    pushed = []
    monkeypatch.setattr(push, "push_model", lambda *what: pushed.append(what) or "the commit")
    line = child()
    folder = line.out / "global_step_2" / "huggingface"
    folder.mkdir(parents=True)
    (line.out / "latest_checkpointed_iteration.txt").write_text("2")
    settings = ("model.path=/secret/base", "data.train_batch_size=8", "+a.b='/secret/x.py'", "optim.lr=2e-05")
    given = {"model": "/secret/base", "data": ["/secret/sft.parquet"], "push": "me/model"}
    line = dataclasses.replace(line, settings=settings, given=given)
    assert run_line(TASKS["sft"], line) == 0
    card = (line.out / "huggingface" / "README.md").read_text()
    assert "# base, trained by sft" in card and "- trained on: `sft.parquet`" in card
    assert "| `data.train_batch_size` | `8` |" in card and "| `a.b` | `x.py` |" in card and "secret" not in card
    assert pushed == [(line.out / "huggingface", "me/model")] and "pushed: the commit" in capfd.readouterr().out

    def refused(*what):
        raise push.PushError("--push me/model: no hub is reached.")

    monkeypatch.setattr(push, "push_model", refused)
    with pytest.raises(push.PushError, match=r"no hub is reached\. .*later: verl-aiops push .*/huggingface me/model"):
        run_line(TASKS["sft"], line)


def test_without_a_checkpoint_there_is_no_model(child, capfd):
    assert run_line(TASKS["grpo"], child()) == 0
    assert "no checkpoint was written" in capfd.readouterr().out


def test_sft_with_lora_merges_its_adapter(child, monkeypatch, capfd):
    from verl_aiops.models import folders

    def merged(shards, target, trust_remote_code):
        os.makedirs(target)
        with open(os.path.join(target, "config.json"), "w") as file:
            file.write(shards)
        print("the merger's words")

    monkeypatch.setattr(folders, "merge_checkpoint", merged)
    line = child()
    checkpoint = line.out / "global_step_2"
    (checkpoint / "huggingface").mkdir(parents=True)
    (checkpoint / "lora_train_meta.json").write_text("{}")
    (line.out / "latest_checkpointed_iteration.txt").write_text("2")
    assert run_line(TASKS["sft"], line) == 0
    assert (line.out / "huggingface" / "config.json").read_text() == str(checkpoint)
    # of RL the policy's shards, adapter or none
    assert run_line(TASKS["grpo"], line) == 0
    assert (line.out / "huggingface" / "config.json").read_text() == str(checkpoint / "actor")
    assert "the merger's words" not in capfd.readouterr().out and "the merger's words" in line.log.read_text()


def test_a_folder_that_cannot_be_made(child, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(Exception, match="--out .*: File exists"):
        run_line(TASKS["dpo"], child())


def test_the_run_outlives_the_console(child):
    """What a trainer prints goes to a file, so that nothing breaks where nobody reads on."""
    line = child("time.sleep(1)\nprint('end of the run', flush=True)")
    code = "import sys; from verl_aiops.cli.fronts import running, line, tasks; import pathlib; p = pathlib.Path;"
    code += "a, out = sys.argv[1:]; o = p(out); running.run_line(tasks.TASKS['dpo'], line.Line(('-c', a, 'x=' + out), "
    code += "(), o, o / 'train.log', o / 'metrics.jsonl'))"
    front = subprocess.Popen([sys.executable, "-c", code, line.arguments[1], str(line.out)], stdout=subprocess.DEVNULL)
    while not (line.log.is_file() and "training" in line.log.read_text()):
        time.sleep(0.05)
    front.kill()
    front.wait()
    until = time.monotonic() + 30
    while "end of the run" not in line.log.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
