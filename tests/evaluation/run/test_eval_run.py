"""A run from questions to tables: its files, taking it up again, failures, hostile outputs, and the command."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from eval_harness import Knowing, questions_of, quoting, right_answer

from verl_aiops.cli import evaluate as cli_eval
from verl_aiops.cli import main as cli
from verl_aiops.cli.baseline import BASELINE
from verl_aiops.cli.before_after import BEFORE_AFTER
from verl_aiops.cli.curves import CURVES
from verl_aiops.cli.eval_pairs import EVAL_PAIRS
from verl_aiops.evaluation.answer_line import KEYS
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import Generation, Job, SamplingOptions, seed_of
from verl_aiops.evaluation.run.evaluate import EvaluationPlan, evaluate
from verl_aiops.evaluation.run.questions import fingerprint, incident_questions, read_rl_questions, sampled
from verl_aiops.evaluation.run.results import Folder, line_of, read_lines
from verl_aiops.incidents import PromptOptions, Simulator, build_rl, file_source, simulator_source, write_incidents
from verl_aiops.incidents.taxonomy import ABSTENTIONS
from verl_aiops.rewards.aiops_mturn import compute_score

SETTINGS = {"model": "m", "temperature": 1.0}


@pytest.fixture(scope="module")
def questions():
    return questions_of(6)


def lines(folder, name="generations.jsonl"):
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def run(questions, backend, out, plan=None, settings=SETTINGS, **options):
    return evaluate(questions, backend, out, plan or EvaluationPlan(samples=2), settings, **options)


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_answer_is_a_line_with_the_score_of_the_training(questions, tmp_path):
    backend = Knowing(wrong=lambda job: "no JSON" if job.sample else None)
    report = run(questions, backend, tmp_path / "out", EvaluationPlan(samples=2, seed=4))
    found = lines(tmp_path / "out")
    assert [(r["id"], r["sample"]) for r in found] == [(q.id, s) for q in questions for s in (0, 1)]
    assert read_lines(tmp_path / "out" / "generations.jsonl") == found
    by_id = {q.id: q for q in questions}
    for r in found:
        q = by_id[r["id"]]
        assert tuple(r) == KEYS
        assert (r["group"], r["source"], r["lang"], r["difficulty"]) == (q.group, q.source, q.lang, q.difficulty)
        assert r["seed"] == seed_of(4, q.id, r["sample"]) and r["error"] is None
        info = {"turns": r["rounds"], "incident_text": q.incident_text}
        assert r["score"] == compute_score("aiops_mturn", "", q.ground_truth, info)
        assert r["ground_truth"] == q.ground_truth and r["tokens"] == [10, 5]
        truth = {key: q.ground_truth[key] for key in ("service", "incident_type")}
        assert r["predicted"] == (None if r["sample"] else truth)
    assert report.fault == "" and report.summary["overall"]["metrics"]["acc_main"]["value"] == 0.5
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == report.summary
    assert (tmp_path / "out" / "table.txt").read_text() == report.table
    assert "50.0 %" in report.table and "pass@k" in report.table


def test_slices_add_up(questions, tmp_path):
    summary = run(questions, Knowing(), tmp_path).summary
    for key in ("source", "lang", "difficulty"):
        assert sum(part["answers"] for part in summary["by"][key].values()) == 12
        assert set(summary["by"][key]) == {getattr(q, key) for q in questions}
    assert summary["counts"]["complete"] and summary["counts"]["asked"] == 12


def test_the_reward_settings_are_used(questions, tmp_path):
    fenced = Knowing(wrong=lambda job: f"```json\n{right_answer(job.question)}\n```")
    strict = run(questions, fenced, tmp_path / "a", EvaluationPlan())
    kind = run(questions, fenced, tmp_path / "b", EvaluationPlan(reward={"allow_fence": True}))
    assert strict.summary["overall"]["metrics"]["json_ok"]["value"] == 0
    assert kind.summary["overall"]["metrics"]["acc_main"]["value"] == 1
    assert all(r["predicted"] for r in lines(tmp_path / "b"))


def test_a_source_that_the_data_do_not_name_is_unknown(questions, tmp_path):
    some = [replace(q, source=None, difficulty=None) for q in questions[:2]]
    summary = run(some, Knowing(), tmp_path).summary
    assert set(summary["by"]["source"]) == set(summary["by"]["difficulty"]) == {"unknown"}


def test_renamed_incidents_are_asked_too_and_compared(questions, tmp_path):
    def remembers(job):
        return right_answer(by_id[job.question.id])

    # an answer that names no fault has no label to swap
    questions = [q for q in questions if q.ground_truth["service"] not in ABSTENTIONS]
    by_id = {q.id: q for q in questions}
    report = run(questions, Knowing(wrong=remembers), tmp_path, EvaluationPlan(rename=3))
    dropped = report.summary["drop"]["metrics"]
    assert len(lines(tmp_path, "renamed.jsonl")) == report.summary["drop"]["incidents"] == len(questions)
    assert dropped["acc_main"]["before"] == 1 and dropped["acc_main"]["after"] == 0
    assert dropped["acc_main"]["value"] == dropped["service_named"]["value"] == 1
    reads = run(questions, Knowing(), tmp_path / "reads", EvaluationPlan(rename=3)).summary["drop"]["metrics"]
    assert reads["acc_main"]["value"] == reads["service_named"]["value"] == 0
    assert "labels swapped" in report.table and "service right, where the data name it" in report.table


# --- taking up --------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_where_it_was(questions, tmp_path, monkeypatch, capsys):
    from verl_aiops.evaluation.run import evaluate as run_module

    counted = []
    monkeypatch.setattr(run_module, "line_of", lambda *args: counted.append(1) or line_of(*args))
    first = Knowing(dies_after=5)
    with pytest.raises(KeyboardInterrupt):
        run(questions, first, tmp_path)
    assert f"5 of 12 answers are in {tmp_path}; the same command goes on from them" in capsys.readouterr().err
    assert len(lines(tmp_path)) == 5 and not (tmp_path / "summary.json").exists()
    second = Knowing()
    report = run(questions, second, tmp_path)
    assert len(first.asked) == 5 and len(second.asked) == 7 and len(counted) == 12
    assert not set(first.asked) & set(second.asked)
    assert len(lines(tmp_path)) == 12 and report.summary["counts"]["complete"]
    third = Knowing()
    assert run(questions, third, tmp_path).summary == report.summary and third.asked == []
    whole = run(questions, Knowing(), tmp_path / "whole")
    assert whole.summary == report.summary
    assert (tmp_path / "whole" / "generations.jsonl").read_bytes() == (tmp_path / "generations.jsonl").read_bytes()


def test_a_line_that_was_cut_short_is_made_again(questions, tmp_path):
    run(questions, Knowing(), tmp_path)
    file = tmp_path / "generations.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    backend = Knowing()
    run(questions, backend, tmp_path)
    assert backend.asked == [(questions[-1].id, 1)] and len(lines(tmp_path)) == 12


def test_a_damaged_file_is_refused(questions, tmp_path):
    run(questions, Knowing(), tmp_path)
    file = tmp_path / "generations.jsonl"
    for damage, message in [(b"not JSON\n", "not JSON"), (b'{"id": "x"}\n', "group: missing"), (b"[]\n", "an object")]:
        file.write_bytes(damage + file.read_bytes())
        with pytest.raises(EvaluationError, match=f"generations.jsonl, line 1: .*{message}"):
            run(questions, Knowing(), tmp_path)


@pytest.mark.parametrize("key, value", [("temperature", 0.5), ("model", "other"), ("questions", "new")])
def test_another_setting_is_refused_by_its_name(questions, tmp_path, key, value):
    with pytest.raises(KeyboardInterrupt):
        run(questions, Knowing(dies_after=3), tmp_path)
    with pytest.raises(EvaluationError) as error:
        run(questions, Knowing(), tmp_path, settings={**SETTINGS, key: value})
    assert f"{key} was {json.dumps(SETTINGS.get(key))}, is {json.dumps(value)}" in str(error.value)
    assert len(lines(tmp_path)) == 3
    backend = Knowing()
    run(questions, backend, tmp_path, settings={**SETTINGS, key: value}, overwrite=True)
    assert len(backend.asked) == 12


@pytest.mark.parametrize("earlier, now", [({"rename": 3}, {}), ({}, {"rename": 3})])
def test_a_setting_that_only_one_side_has_is_a_difference(tmp_path, earlier, now):
    """Also one that only the earlier evaluation had, such as an option that was given then and is left out now."""
    with Folder(tmp_path / "out", {"model": "m", **earlier}):
        pass
    message = f"rename was {earlier.get('rename', 'null')}, is {now.get('rename', 'null')}. Restore"
    with pytest.raises(EvaluationError, match=message):
        Folder(tmp_path / "out", {"model": "m", **now})
    with Folder(tmp_path / "out", {"model": "m", **earlier}):
        pass


def test_answers_without_settings_are_not_touched(questions, tmp_path):
    (tmp_path / "generations.jsonl").write_text("mine\n")
    with pytest.raises(EvaluationError, match="no settings.json"):
        run(questions, Knowing(), tmp_path)
    assert (tmp_path / "generations.jsonl").read_text() == "mine\n"


def test_one_run_at_a_time_in_a_folder(questions, tmp_path):
    class Nested(Knowing):
        def generate(self, jobs, done):
            with pytest.raises(EvaluationError, match="another evaluation is writing"):
                run(questions, Knowing(), tmp_path)
            super().generate(jobs, done)

    run(questions, Nested(), tmp_path)
    run(questions, Knowing(), tmp_path)


def test_a_killed_process_leaves_what_it_had(tmp_path):
    """SIGKILL, in the middle of the answers."""
    program = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2] / "harness")!r})
        from eval_harness import Knowing, questions_of
        from verl_aiops.evaluation.run.evaluate import EvaluationPlan, evaluate

        def slow(job):
            time.sleep(0.05)

        plan = EvaluationPlan(samples=20)
        evaluate(questions_of(6), Knowing(wrong=slow), {str(tmp_path / "out")!r}, plan, {{"model": "m"}})
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    file = tmp_path / "out" / "generations.jsonl"
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = file.read_bytes().count(b"\n")
    assert 5 <= kept < 120
    backend = Knowing()
    report = run(questions_of(6), backend, tmp_path / "out", EvaluationPlan(samples=20), {"model": "m"})
    assert len(backend.asked) == 120 - kept and report.summary["counts"]["complete"]


# --- failures ---------------------------------------------------------------------------------------------------------


def test_failed_answers_are_counted_shown_and_tried_again(questions, tmp_path):
    def fails(job):
        return "HTTP 500" if (job.question.id, job.sample) == (questions[2].id, 1) else None

    report = run(questions, Knowing(fails=fails), tmp_path, EvaluationPlan(samples=2, max_failed_share=0.1))
    assert report.fault == "" and report.summary["counts"]["failed"] == 1
    assert report.summary["overall"]["answers"] == 11 and "1 of 12 answers failed" in report.table
    (failed,) = [r for r in lines(tmp_path) if r["error"]]
    assert failed["error"] == "HTTP 500" and failed["score"] is None and failed["predicted"] is None
    strict = run(questions, Knowing(fails=fails), tmp_path / "b", EvaluationPlan(samples=2, max_failed_share=0.05))
    assert strict.fault.startswith("1 of 12 answers failed (--max-failed-share 0.05), most often with: HTTP 500.")
    backend = Knowing()
    report = run(questions, backend, tmp_path)
    assert backend.asked == [(questions[2].id, 1)] and report.summary["counts"]["failed"] == 0


def test_a_server_that_never_answers_is_given_up(questions, tmp_path):
    backend = Knowing(fails=lambda job: "refused")
    report = run(questions, backend, tmp_path)
    assert len(backend.asked) == 8 and "8 answers failed one after another, the last with: refused" in report.fault
    assert report.summary["counts"]["missing"] == 4 and "UNFINISHED" in report.table
    assert not report.summary["counts"]["complete"]
    tolerant = run(questions, Knowing(fails=lambda job: "x"), tmp_path / "b", EvaluationPlan(max_failed_share=1.0))
    assert tolerant.fault == "" and tolerant.summary["overall"]["metrics"] == {}


HOSTILE = [
    "",
    "{" * 50_000,
    "[" * 50_000 + "]" * 50_000,
    '{"service": ' + "9" * 6000 + ', "incident_type": "x"}',
    '{"service": "a", "service": "b", "incident_type": "c"}',
    '{"service": "' + "e\u0301" * 1900 + '", "incident_type": "x"}',
    "\x00\x1b[2J\u2028\u202e<|im_end|>",
    '"' * 20_000,
    "`" * 20_000,
    '{"service": NaN, "incident_type": Infinity}',
    "a" * 2_000_000,
    json.dumps({"service": "\n\x1b]0;owned\x07", "incident_type": "\u2028"}),
    json.dumps({"service": "\ud800", "incident_type": "\udfff"}),
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_neither_raise_nor_earn(questions, tmp_path, hostile):
    class Hostile(Knowing):
        def generate(self, jobs, done):
            for job in jobs:
                done(job, Generation([hostile, hostile], [True, True], None))

    started = time.monotonic()
    report = run(questions, Hostile(), tmp_path, EvaluationPlan(samples=2))
    assert time.monotonic() - started < 30
    assert report.summary["overall"]["metrics"]["acc_main"]["value"] == 0
    assert report.summary["overall"]["metrics"]["score"]["value"] < 0.06
    assert all(r["rounds"] == [hostile, hostile] for r in read_lines(tmp_path / "generations.jsonl"))
    assert all(c.isprintable() or c == "\n" for c in report.table)


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """The same simulated incidents as a file and as RL prompts."""
    source = simulator_source(Simulator(seed=2, lang="mix"), 8)
    write_incidents(source.stream(), tmp_path / "incidents.jsonl")
    for name in ("rl.parquet", "rl.jsonl"):
        build_rl(source, tmp_path / name, val_share=0, seed=7, prompts=PromptOptions(budget=400, max_candidates=5))
    return tmp_path


def test_incidents_are_asked_as_build_rl_writes_them(files):
    source = simulator_source(Simulator(seed=2, lang="mix"), 8)
    made = incident_questions(source, PromptOptions(budget=400, max_candidates=5, seed=7))
    for name in ("rl.parquet", "rl.jsonl"):
        read = read_rl_questions(str(files / name))
        assert read == made and fingerprint(read) == fingerprint(made)
    assert {q.difficulty for q in made} == {"medium"}


def test_a_difficulty_that_is_not_known_stays_unknown(tmp_path):
    incidents = [replace(i, difficulty=None) for i in Simulator(seed=2).stream(3)]
    write_incidents(incidents, tmp_path / "incidents.jsonl")
    source = file_source(tmp_path / "incidents.jsonl")
    build_rl(source, tmp_path / "rl.parquet", val_share=0)
    read = read_rl_questions(str(tmp_path / "rl.parquet"))
    assert read == incident_questions(source, PromptOptions()) and {q.difficulty for q in read} == {None}


def test_a_sample_of_the_questions_keeps_their_order(questions):
    some = sampled(questions, 3, seed=1)
    assert len(some) == 3 and [q for q in questions if q in some] == some
    assert sampled(questions, 3, seed=1) == some and sampled(questions, 99, 0) == sampled(questions, None, 0)
    assert len({tuple(q.id for q in sampled(questions, 3, seed)) for seed in range(9)}) > 1


def rl_row(**changes):
    truth = {"service": "a", "incident_type": "b", "evidence": ["line"]}
    row = {
        "prompt": [{"role": "user", "content": "a line"}],
        "reward_model": {"ground_truth": json.dumps(truth)},
        "extra_info": {"id": "x", "incident_text": "a line", "rounds": ["now"]},
    }
    return {**row, **changes}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt": "text"}, "prompt: expected a list of messages"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, r"prompt\[0\].role: expected user last"),
        ({"prompt": [{"role": "user"}]}, r"prompt\[0\]: expected an object with role and content"),
        (
            {"prompt": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            r"prompt\[0\].tool_calls: expected role and content alone",
        ),
        ({"reward_model": None}, "reward_model: expected an object"),
        ({"reward_model": {"ground_truth": "{}"}}, "reward_model.ground_truth: service: expected"),
        ({"reward_model": {"ground_truth": None}}, "reward_model.ground_truth: expected a mapping"),
        ({"extra_info": {"id": "x", "incident_text": "other"}}, "expected evidence that occurs in extra_info"),
        ({"extra_info": {"id": 3}}, "extra_info.id: expected text"),
        ({"extra_info": {"incident_text": "a line", "rounds": [""]}}, "extra_info.rounds: expected"),
        (
            {"extra_info": {"incident_text": "a line \ud800"}},
            r"incident_text holds the half of a surrogate pair U\+D800",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(write_rows, changes, message):
    path = write_rows([rl_row(extra_info={"incident_text": "a line"}), rl_row(**changes)])
    with pytest.raises(EvaluationError, match=f"pairs.jsonl, line 2: .*{message}"):
        read_rl_questions(path)


def test_rows_need_little(write_rows):
    truth = {"service": "a", "incident_type": "b"}
    row = {"prompt": [{"role": "user", "content": "?"}], "reward_model": {"ground_truth": truth}}
    (question,) = read_rl_questions(write_rows([row]))
    assert (question.id, question.group, question.source, question.rounds) == ("row-0", "row-0", None, ())
    with pytest.raises(EvaluationError, match="line 2: extra_info.id: 'x' was used in .*line 1"):
        read_rl_questions(write_rows([rl_row(), rl_row()]))


# --- the command ------------------------------------------------------------------------------------------------------


def command(*arguments):
    return cli.main(["eval", *map(str, arguments)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "none", "--data", "rl.parquet"], "--model none: no such folder"),
        (["--model", ".", "--data", "rl.parquet"], "no config.json and no checkpoint of verl in it"),
        (["--model", "m", "--endpoint", "http://h/v1"], "expected --data FILE or --incidents FILE"),
        (["--model", "m", "--endpoint", "http://h/v1", "--data", "none.parquet"], "none.parquet does not exist"),
        (["--model", "m", "--endpoint", "http://h/v1", "--data", "incidents.jsonl"], "give it as --incidents"),
        (["--model", "m", "--endpoint", "http://h/v1", "--incidents", "none.jsonl"], "none.jsonl: no such file"),
        (["--model", "m", "--endpoint", "h:80", "--data", "rl.parquet"], "--endpoint h:80: expected an address"),
        (["--model", "m", "--endpoint", "http://u:p@h/v1", "--data", "rl.parquet"], "expected no user, password"),
        (["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--n", "3"], "--n 3 with --temperature 0"),
        (["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--top-p", "0"], "--top-p 0.0"),
        (["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--round-tokens", "a"], "--round-tokens a"),
        (
            ["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--answer-tokens", "512"],
            "Here they are --max-response-length",
        ),
        (
            ["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--max-chars", "9"],
            "--max-chars: goes with",
        ),
        (
            ["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--reward", "evidence_weight=9"],
            "--reward: ",
        ),
        (["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--reward", "x"], "expected name=value"),
        (["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--api-key-env", "NOPE"], "NOPE: this env"),
        (["--model", "m", "--data", "rl.parquet", "--schema"], "--schema goes with --endpoint"),
        (["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--timeout", "0"], "--timeout 0.0"),
        (["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--limit", "0"], "--limit 0"),
        (["--model", "m", "--endpoint", "http://h", "--data", "rl.parquet", "--max-failed-share", "2"], "from 0 to 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(files, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(files)
    assert command(*arguments, "--out", "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("verl-aiops: error: ") and error.count("\n") == 1
    assert not Path("out/generations.jsonl").exists()


def test_options_that_make_no_sense_are_refused():
    for options in ({"temperature": -1}, {"temperature": float("nan")}, {"round_tokens": (0,)}, {"answer_tokens": 0}):
        with pytest.raises(EvaluationError):
            SamplingOptions(**options)
    with pytest.raises(EvaluationError, match="--n 0"):
        EvaluationPlan(samples=0)


def test_seeds_differ_between_incidents_samples_and_runs():
    seeds = [seed_of(run, name, sample) for run in (0, 1) for name in ("a", "b") for sample in range(5)]
    assert len(set(seeds)) == 20 and all(0 <= seed < 2**31 for seed in seeds)


def test_scored_rounds_are_not_changed():
    question = questions_of(1)[0]
    made = Generation([quoting(question), right_answer(question)], [False, True], [3, 2])
    record = line_of(Job(question, 0, 9), made, {})
    assert record["rounds"] == made.turns and record["cut"] == [False, True] and record["seed"] == 9
    assert record["score"]["acc_main"] == 1 and record["score"]["evidence"] > 0


def test_the_docs_name_every_key_and_file():
    docs = (Path(__file__).parents[3] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    for name in (*KEYS, "generations.jsonl", "renamed.jsonl", "summary.json", "table.txt", "settings.json"):
        assert f"`{name}`" in docs, name
    sections = re.split(r"^## ", docs, flags=re.MULTILINE)
    own = {
        "Before and after DPO": BEFORE_AFTER.add_options,
        "Beside a baseline": BASELINE.add_options,
        "Held-out pairs of any task": EVAL_PAIRS.add_options,
        "Training curves": CURVES.add_options,
    }
    unknown = set()
    for section in sections:
        parser = argparse.ArgumentParser()
        own.get(section.partition("\n")[0], cli_eval.eval_options)(parser)
        known = {option for action in parser._actions for option in action.option_strings}
        unknown |= set(re.findall(r"--[a-z][a-z-]+", section)) - known
    assert unknown == {"--taxonomy-out", "--num-incidents", "--difficulty"}  # of other commands
    assert {section.partition("\n")[0] for section in sections} >= set(own)
