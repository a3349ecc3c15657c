"""What is compared with what: folders and dumps that are read, incidents that are paired, and those that are not."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from compare_harness import Guessing, evaluated, in_faults, lines_of, questions_of, write_lines

from verl_aiops.evaluation.compare.pairing import pair, values
from verl_aiops.evaluation.compare.read_runs import read_run, read_runs
from verl_aiops.evaluation.compare.verl_dumps import dumped_steps, read_dump
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.stats.metrics import In, metrics


@pytest.fixture(scope="module")
def questions():
    return in_faults(questions_of(12))


@pytest.fixture(scope="module")
def made(questions, tmp_path_factory):
    """Two evaluations: `a` of all incidents, `b` without the last two, one answer of it failed, all of another."""
    base = tmp_path_factory.mktemp("made")
    lost, partly = questions[3].id, questions[5].id

    def fails(job):
        return "HTTP 500" if job.question.id == lost or (job.question.id, job.sample) == (partly, 1) else None

    evaluated(base / "a", questions, Guessing(0.4), samples=2)
    evaluated(base / "b", questions[:10], Guessing(0.7, seed=1, fails=fails), samples=2)
    return base


@pytest.fixture
def folders(made, tmp_path):
    """A copy that may be damaged."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def paired(*folders):
    return pair(read_runs([str(folder) for folder in folders]))


# --- pairing ----------------------------------------------------------------------------------------------------------


def test_every_incident_is_compared_or_counted_with_its_reason(made, questions):
    pairing = paired(made / "a", made / "b")
    lost, missing = questions[3].id, [question.id for question in questions[10:]]
    assert list(pairing.ids) == [question.id for question in questions[:10] if question.id != lost]
    assert pairing.left_out["a"] == {"without an answer of b": [lost], "not asked of b": missing}
    assert pairing.left_out["b"] == {"without an answer of b": [lost]}
    for run in pairing.runs:
        left = sum(map(len, pairing.left_out[run.label].values()))
        assert len(pairing.ids) + left == len(run.incidents)


def test_pairs_are_of_the_same_incident_and_group(made, questions):
    pairing = paired(made / "a", made / "b")
    by_id = {question.id: question for question in questions}
    for at, name in enumerate(pairing.ids):
        assert {line["id"] for run in "ab" for line in pairing.answers[run][at]} == {name}
        assert pairing.info(at)["group"] == by_id[name].group
    same = [[pairing.info(i)["group"] == pairing.info(j)["group"] for j in range(9)] for i in range(9)]
    assert (np.equal.outer(pairing.groups, pairing.groups) == same).all()


def test_failed_answers_do_not_count_in_the_mean_of_an_incident(made, questions):
    pairing = paired(made / "a", made / "b")
    at = pairing.ids.index(questions[5].id)
    assert [line["sample"] for line in pairing.answers["b"][at]] == [0]
    assert values(pairing, "b", "acc_main")[at] == pairing.answers["b"][at][0]["score"]["acc_main"]
    assert [line["error"] for line in pairing.runs[1].incidents[questions[5].id]] == [None, "HTTP 500"]


def test_values_are_means_over_the_answers_to_an_incident(made):
    pairing = paired(made / "a", made / "b")
    for name in ("acc_main", "json_ok", "score", "chars"):
        for at, lines in enumerate(pairing.answers["a"]):
            expected = sum(line["score"][name] for line in lines) / len(lines)
            assert values(pairing, "a", name)[at] == pytest.approx(expected)
    assert all(len(values(pairing, "b", name)) == 9 for name, metric in metrics(In.COMPARE).items() if metric.value)


def test_the_order_of_the_lines_does_not_matter(folders):
    before = paired(folders / "a", folders / "b")
    lines = lines_of(folders / "b")
    write_lines(folders / "b", lines[::-1])
    after = paired(folders / "a", folders / "b")
    assert before.ids == after.ids and before.answers == after.answers


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda line: line["ground_truth"].update(service="elsewhere"), "the service of .* 'elsewhere' in b"),
        (lambda line: line["ground_truth"].update(incident_type="other"), "the incident_type of"),
        (lambda line: line.update(group="another"), "the group of"),
    ],
)
def test_different_data_under_one_id_are_refused(folders, change, message):
    lines = lines_of(folders / "b")
    name = lines[4]["id"]
    for line in lines:
        if line["id"] == name:
            change(line)
    write_lines(folders / "b", lines)
    with pytest.raises(EvaluationError, match=f"different data: {message}"):
        paired(folders / "a", folders / "b")


def test_names_that_count_as_the_same_are_no_different_data(folders):
    lines = lines_of(folders / "b")
    for line in lines:
        line["ground_truth"]["service"] = line["ground_truth"]["service"].upper()
    write_lines(folders / "b", lines)
    assert len(paired(folders / "a", folders / "b").ids) == 9


def test_nothing_in_common_is_refused_with_examples(folders):
    lines = lines_of(folders / "b")
    write_lines(folders / "b", [{**line, "id": "x-" + line["id"]} for line in lines])
    with pytest.raises(EvaluationError, match="no incident is in all runs .a has 12, such as 'sim-.*b has 10.*'x-sim-"):
        paired(folders / "a", folders / "b")


def test_no_answer_in_common_is_refused(folders):
    lines = [{**line, "score": None, "predicted": None, "error": "down"} for line in lines_of(folders / "b")]
    write_lines(folders / "b", lines)
    with pytest.raises(EvaluationError, match="of the 10 incidents .* none was answered by all: a answered 12, b .* 0"):
        paired(folders / "a", folders / "b")


def test_prompts_that_were_not_made_alike_are_noted(folders):
    lines = lines_of(folders / "b")
    for line in lines[:4]:
        line["ground_truth"]["evidence"] = line["ground_truth"]["evidence"][:1] + ["cut"]
    write_lines(folders / "b", lines)
    pairing = paired(folders / "a", folders / "b")
    assert pairing.notes == (
        "known evidence of 2 incidents differs between a and b: their prompts were not made alike",
    )


def test_the_same_incidents_in_other_words_are_noted(tmp_path, questions):
    evaluated(tmp_path / "a", questions, Guessing(0.4))
    again = [
        replace(q, messages=({"role": "user", "content": "Please. " + q.messages[0]["content"]},)) for q in questions
    ]
    evaluated(tmp_path / "b", again, Guessing(0.4))
    assert paired(tmp_path / "a", tmp_path / "b").notes == (
        "a and b were asked in different words (settings.json: questions)",
    )


# --- folders of verl-aiops eval ---------------------------------------------------------------------------------------


def test_labels(made, tmp_path):
    assert [run.label for run in read_runs([str(made / "a"), f"after={made}/b"])] == ["a", "after"]
    odd = tmp_path / "lr=1e-5"
    shutil.copytree(made / "a", odd)
    assert [run.label for run in read_runs([str(odd), f"x={odd}"])] == ["lr=1e-5", "x"]


@pytest.mark.parametrize(
    "specs, message",
    [
        (["{a}"], "expected two runs or more, found 1"),
        (["{a}", "a={b}"], "label 'a': .* both have it; give each its own: LABEL="),
        (["{a}", "={b}"], "expected a label of 1 to 40 printable characters, found ''"),
        (["{a}", "x\n={b}"], "printable characters"),
        (["{a}", "y" * 41 + "={b}"], "1 to 40"),
        (["{a}", "{a}/none"], "none: no such folder"),
        (["{a}", "z={a}/.."], "holds several evaluations; name one of them: a, b"),
    ],
)
def test_runs_that_are_none_are_refused(made, specs, message):
    with pytest.raises(EvaluationError, match=message):
        read_runs([spec.format(a=made / "a", b=made / "b") for spec in specs])


def test_a_folder_of_something_else_says_what_to_do(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="a model's folder; evaluate it first: verl-aiops eval --model"):
        read_run("x", str(tmp_path / "model"))
    with pytest.raises(EvaluationError, match="no generations.jsonl in it"):
        read_run("x", str(tmp_path))


def test_an_evaluation_that_has_not_ended_is_refused_or_noted(folders):
    (folders / "a" / "summary.json").unlink()
    with pytest.raises(EvaluationError, match="no summary.json, so the evaluation has not ended"):
        read_run("a", str(folders / "a"))
    summary = json.loads((folders / "b" / "summary.json").read_text())
    summary["counts"]["missing"] = 1234
    (folders / "b" / "summary.json").write_text(json.dumps(summary))
    assert read_run("b", str(folders / "b")).notes == (
        "unfinished: 1,234 of the answers that were asked for are missing",
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: lines[1].update(sample=0), "line 2: id 'sim-.*', sample 0: occurs twice"),
        (lambda lines: lines[1].update(group="g"), "line 2: id 'sim-.*': its samples have different groups"),
        (lambda lines: lines[2]["score"].pop("acc_main"), "line 3: score: expected the numbers"),
        (lambda lines: lines[2]["score"].update(score=float("nan")), "line 3: score.score: expected a finite number"),
        (lambda lines: lines[2].update(rounds=[1]), "line 3: rounds: expected texts"),
        (lambda lines: lines[2].update(rounds=[]), "line 3: rounds: expected the answer's text"),
        (lambda lines: lines[2].update(tokens=["3"]), "line 3: tokens: expected whole numbers"),
        (lambda lines: lines[2]["ground_truth"].pop("service"), "line 3: ground_truth: service"),
        (lambda lines: lines.clear(), "no answers in it"),
        (lambda lines: lines[0].pop("group"), "line 1: group: missing"),
    ],
)
def test_damaged_lines_are_named(folders, change, message):
    lines = lines_of(folders / "a")
    change(lines)
    write_lines(folders / "a", lines)
    with pytest.raises(EvaluationError, match=message):
        read_run("a", str(folders / "a"))


def test_a_file_of_its_own_can_be_named(made):
    run = read_run("x", str(made / "a" / "generations.jsonl"))
    assert run.incidents == read_run("a", str(made / "a")).incidents and run.path.endswith("generations.jsonl")


def test_credentials_of_an_address_are_not_read(folders):
    file = folders / "a" / "settings.json"
    settings = json.loads(file.read_text()) | {"endpoint": "http://me:secret@host:8000/v1/chat/completions"}
    file.write_text(json.dumps(settings))
    assert read_run("a", str(folders / "a")).settings["endpoint"] == "http://***@host:8000/v1/chat/completions"


# --- verl's dumps -----------------------------------------------------------------------------------------------------


def row_of(line, **changes):
    """What `_write_generations` of verl writes for an answer."""
    rounds = {f"round_{at}": text for at, text in enumerate(line["rounds"], 1)}
    base = {"input": "user\n" + line["id"], "output": " ".join(line["rounds"]), "gts": json.dumps(line["ground_truth"])}
    return {**base, "step": 8, "reward": line["score"]["score"], **line["score"], **rounds, **changes}


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_dump_has_the_answers_and_scores_of_the_evaluation(made, tmp_path):
    lines = [line for line in lines_of(made / "a")]
    read = read_dump(write_rows(tmp_path / "8.jsonl", [row_of(line) for line in lines]))
    assert len({record["id"] for record in read}) == 12
    for line, record in zip(lines, read, strict=True):
        assert record["rounds"] == line["rounds"] and record["predicted"] == line["predicted"]
        assert record["score"].items() >= line["score"].items()
        assert record["sample"] == line["sample"] and record["group"] == record["id"]
        assert record["ground_truth"] == line["ground_truth"]


def test_dumps_are_paired_by_their_prompts_and_say_nothing_of_tokens_and_cuts(made, tmp_path):
    lines = lines_of(made / "a")
    write_rows(tmp_path / "val" / "0.jsonl", [row_of(line) for line in lines])
    write_rows(tmp_path / "val" / "10.jsonl", [row_of(line) for line in lines[::-1]])
    write_rows(tmp_path / "val" / "9.jsonl", [row_of(line) for line in lines[:6]])
    assert dumped_steps(tmp_path / "val") == [0, 9, 10]
    pairing = paired(tmp_path / "val" / "0.jsonl", tmp_path / "val")
    assert len(pairing.ids) == 12
    assert pairing.runs[1].notes[0] == "step 10, the last that was dumped (there are also 0, 9)"
    assert np.isnan(values(pairing, "val", "tokens")).all() and np.isnan(values(pairing, "val", "cut")).all()
    assert (values(pairing, "0", "acc_main") == values(pairing, "val", "acc_main")).all()


def test_of_several_outputs_of_one_loop_the_last_counts(made, tmp_path):
    line = lines_of(made / "a")[0]
    rows = [
        row_of(line, uid=f"u-1_{answer}_{output}", round_2=f"{answer}{output}")
        for answer in (0, 1)
        for output in (0, 1)
    ]
    read = read_dump(write_rows(tmp_path / "1.jsonl", rows))
    assert [(record["sample"], record["rounds"][1]) for record in read] == [(0, "01"), (1, "11")]


def test_rows_without_a_score_are_answers_that_failed(made, tmp_path):
    line = next(line for line in lines_of(made / "a") if line["predicted"])
    (record,) = read_dump(write_rows(tmp_path / "1.jsonl", [row_of(line, score=float("nan"))]))
    assert (record["error"], record["score"], record["predicted"]) == ("no finite score", None, None)


def test_the_score_of_a_dump_is_the_rules_whatever_a_reward_model_made_of_it(made, tmp_path):
    lines = lines_of(made / "a")
    for at, line in enumerate(lines[:3]):
        mixed = (0.9, -1.5, float("nan"))[at]
        row = row_of(line, score=mixed, reward=mixed, rule=line["score"]["score"], rm=3.0)
        (record,) = read_dump(write_rows(tmp_path / f"{at}.jsonl", [row]))
        assert record["error"] is None and record["score"]["score"] == line["score"]["score"]


def test_few_prompts_in_common_are_noted_with_what_verl_draws(made, tmp_path):
    lines = lines_of(made / "a")
    for name, part in (("x", lines[:14]), ("y", lines[10:])):
        write_rows(tmp_path / name / "4.jsonl", [row_of(line) for line in part])
    pairing = paired(tmp_path / "x", tmp_path / "y")
    assert len(pairing.ids) == 2
    assert "only 2 of up to 7 incidents are compared; with data.val_max_samples, verl draws other" in pairing.notes[0]
    write_rows(tmp_path / "z" / "4.jsonl", [row_of(line) for line in lines[14:]])
    with pytest.raises(EvaluationError, match="such as 'prompt-.*unless data.seed is set"):
        paired(tmp_path / "x", tmp_path / "z")


def test_dumps_and_evaluations_cannot_be_compared(made, tmp_path):
    write_rows(tmp_path / "val" / "4.jsonl", [row_of(line) for line in lines_of(made / "a")])
    with pytest.raises(EvaluationError, match="Dumps of verl name no incidents .* so they cannot be compared with"):
        paired(made / "a", tmp_path / "val")


def test_the_folder_of_a_training_says_where_its_dumps_are(made, tmp_path):
    write_rows(tmp_path / "run" / "validation" / "4.jsonl", [row_of(line) for line in lines_of(made / "a")])
    with pytest.raises(EvaluationError, match="dumps of verl in validation; name the one of validation"):
        read_run("x", str(tmp_path / "run"))


def test_without_rounds_the_output_is_the_answer(made, tmp_path):
    row = {key: value for key, value in row_of(lines_of(made / "a")[0]).items() if not key.startswith("round_")}
    (record,) = read_dump(write_rows(tmp_path / "1.jsonl", [row]))
    assert record["rounds"] == [row["output"]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": None}, "line 1: input: expected text"),
        ({"gts": 3}, "line 1: gts: expected the ground truth"),
        ({"gts": "{"}, "line 1: gts: not JSON"),
        ({"gts": "[]"}, "line 1: gts: expected an object"),
        ({"acc_main": None}, "line 1: acc_main: missing; only dumps of the triage reward"),
        ({"evidence": "much"}, "line 1: score.evidence: expected a finite number"),
    ],
)
def test_rows_of_other_dumps_are_refused(made, tmp_path, change, message):
    file = write_rows(tmp_path / "1.jsonl", [row_of(lines_of(made / "a")[0], **change)])
    with pytest.raises(EvaluationError, match=message):
        read_run("x", str(file))


def test_files_that_are_neither_are_refused(tmp_path):
    for content in (b"", b"hello\n", b"[1]\n", b"\xff\xfe\n"):
        (tmp_path / "x.jsonl").write_bytes(content)
        with pytest.raises(EvaluationError, match="x.jsonl, line 1: expected a JSON object"):
            read_run("x", str(tmp_path / "x.jsonl"))
