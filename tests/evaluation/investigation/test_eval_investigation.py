"""Evaluations of investigations: metrics, both backends, files, comparison, and preference data made of them."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from investigation_parts import CASE, PROMPT, RIGHT, VERDICT, Scripted, call, right_of

from verl_aiops.cli.main import main
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.investigation.asking import (
    EndpointInvestigator,
    ToolOptions,
    _read,
)
from verl_aiops.evaluation.investigation.compare import compare_investigations, of_investigations
from verl_aiops.evaluation.investigation.evaluate import evaluate_investigations, read_investigations
from verl_aiops.evaluation.investigation.metrics import grounded, node_f1, reached, service_f1
from verl_aiops.evaluation.investigation.pairs import build_investigation_pairs
from verl_aiops.evaluation.investigation.questions import (
    CaseQuestion,
    fingerprint,
    holds_investigations,
    read_case_questions,
)
from verl_aiops.evaluation.on_policy.summary import OwnPairOptions
from verl_aiops.evaluation.run.backend import SamplingOptions
from verl_aiops.evaluation.run.openai_backend import EndpointOptions
from verl_aiops.http import HttpFault
from verl_aiops.rewards.investigation.ground_truth import read_investigation_truth
from verl_aiops.rewards.investigation.verdict import parse_verdict
from verl_aiops.rollout.tools.settings import ToolSettings

TRUTH = {name: CASE[name] for name in ("root_causes", "propagation", "reasons")}
INFO = {"id": "case-1", "case": json.dumps(CASE), "tools": "prompt"}
WRONG = json.dumps({"root_causes": [{"component": "cart", "reason": "disk_full"}]})


def question(name="case-1", **info):
    messages = tuple(PROMPT)
    return CaseQuestion(name, name, "shop", "en", "simulated", messages, {**INFO, **info, "id": name}, TRUTH)


GOOD = [call(service="cart-db"), VERDICT]
LONG = [call(service="frontend"), call(service="cart"), call(service="cart-db"), VERDICT]
BAD = [call(service="cart"), WRONG]
NONE = ["I do not know."]


def evaluated(tmp_path, *scripts, name="eval", samples=None, questions=None, **settings):
    backend = Scripted(*scripts)
    asked = questions or [question(f"case-{n}") for n in range(6)]
    settings = {"task": "investigation", "questions": fingerprint(asked), **settings}
    more = {"samples": samples or len(scripts), "seed": 0, "max_failed_share": 1.0}
    table, fault = evaluate_investigations(asked, backend, tmp_path / name, settings, {}, **more)
    return table, backend


def test_an_evaluation_and_its_table(tmp_path):
    table, backend = evaluated(tmp_path, GOOD, BAD, None, samples=4)
    assert backend.asked == 24
    assert "6 cases, 18 investigations" in table and "avg@4" in table and "6 of 24 failed" in table
    lines = read_investigations(tmp_path / "eval" / "generations.jsonl")
    assert len(lines) == 24 and lines[0]["tool_calls"][0]["ok"] and lines[0]["score"]["acc_main"] == 1
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["model"]["acc_main"]["value"] == pytest.approx(2 / 3)
    assert summary["model"]["grounded"]["value"] == pytest.approx(2 / 3)
    assert summary["model"]["calls"]["value"] == 1 and summary["model"]["any_service"]["n"] == 18
    # the rule stands beside it, on the same cases
    assert summary["rule"]["acc_main"]["n"] == 6 and "rule along the call graph" in table
    # a run that is taken up asks what failed, and nothing else
    _, again = evaluated(tmp_path, GOOD, BAD, GOOD, samples=4)
    assert again.asked == 6
    with pytest.raises(EvaluationError, match="made with other settings"):
        evaluated(tmp_path, GOOD, task="other")
    with (tmp_path / "eval" / "generations.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(EvaluationError, match="line 25: id: missing"):
        read_investigations(tmp_path / "eval" / "generations.jsonl")
    for key, damaged, told in (
        ("cut", None, "cut: missing"),
        ("tool_calls", [{"turn": 0}], "expected objects with turn"),
    ):
        (tmp_path / "one.jsonl").write_text(json.dumps({**lines[0], key: damaged}) + "\n")
        with pytest.raises(EvaluationError, match=f"line 1: .*{told}"):
            read_investigations(tmp_path / "one.jsonl")


def test_slices_stand_below_the_table_where_there_are_several(tmp_path):
    asked = [replace(question(f"case-{n}"), part=("real", "simulated")[n % 2]) for n in range(6)]

    class ByPart(Scripted):
        def investigate(self, jobs, done):
            for job in jobs:
                self.scripts = (GOOD if job.question.part == "real" else BAD,)
                super().investigate([job], done)

    table, _ = evaluate_investigations(asked, ByPart(), tmp_path / "eval", {}, {})
    by = json.loads((tmp_path / "eval" / "summary.json").read_text())["by"]
    assert list(by) == ["part"] and {name: one["cases"] for name, one in by["part"].items()} == {
        "real": 3,
        "simulated": 3,
    }
    assert [by["part"][name]["model"]["acc_main"]["value"] for name in ("real", "simulated")] == [1, 0]
    assert "by part" in table and "by source" not in table
    (real,) = (line for line in table.splitlines() if line.startswith("real "))
    assert "100.0 %" in real


def test_too_many_failures_are_a_fault(tmp_path):
    asked = [question()]
    table, fault = evaluate_investigations(asked, Scripted(None), tmp_path, {}, {})
    assert "1 of 1 investigations failed, first with: the server is away" in fault


@pytest.mark.parametrize(
    ("edges", "causes", "expected"),
    [
        ([("cart-db", "cart"), ("cart", "frontend")], ["cart-db"], True),
        ([("cart-db", "cart")], ["cart-db"], False),
        ([("cart", "frontend")], ["cart-db"], False),
        ([("cart-db", "frontend")], ["cart-db"], False),
        ([("cart-db", "cart"), ("cart", "frontend")], ["cart"], False),
        ([("frontend", "cart"), ("cart", "cart-db")], ["cart-db"], False),
    ],
)
def test_a_cause_is_grounded_by_true_edges_to_the_end_of_the_path(edges, causes, expected):
    said = {
        "root_causes": [{"component": name} for name in causes],
        "propagation": [{"from": one, "to": other} for one, other in edges],
    }
    assert grounded(parse_verdict(json.dumps(said)), read_investigation_truth(TRUTH)) is expected


@pytest.mark.parametrize(
    ("edges", "causes", "joined", "services", "nodes"),
    [
        # an edge that is not true joins them too, as in the authors' evaluation
        ([("cart-db", "frontend")], ["cart-db"], True, 1.0, 4 / 5),
        ([("cart-db", "cart"), ("cart", "frontend")], ["cart-db"], True, 1.0, 1.0),
        ([("cart-db", "cart")], ["cart-db"], False, 1.0, 4 / 5),
        ([("cart", "frontend"), ("cart-db", "cart")], ["cart"], False, 0.0, 1.0),
        ([("frontend", "cart-db")], ["cart-db"], False, 1.0, 4 / 5),
        ([], ["cart-db", "cart"], False, 2 / 3, 4 / 5),
        ([], [], False, 0.0, 0.0),
    ],
)
def test_paths_and_services_as_openrca2_counts_them(edges, causes, joined, services, nodes):
    said = {
        "root_causes": [{"component": name} for name in causes],
        "propagation": [{"from": one, "to": other} for one, other in edges],
    }
    verdict, truth = parse_verdict(json.dumps(said)), read_investigation_truth(TRUTH)
    assert reached(verdict, truth) is joined
    assert (service_f1(verdict, truth), node_f1(verdict, truth)) == pytest.approx((services, nodes))


def test_runs_are_compared_case_by_case(tmp_path):
    evaluated(tmp_path, BAD, name="before")
    evaluated(tmp_path, GOOD, name="after")
    runs = [str(tmp_path / name) for name in ("before", "after")]
    assert of_investigations(runs) and not of_investigations([str(tmp_path)]) and not of_investigations([])
    table, files = compare_investigations(runs, tmp_path / "compare", plots=False)
    assert files == ["report.html", "comparison.json", "table.txt"] and "after - before: 6 cases" in table
    found = json.loads((tmp_path / "compare" / "comparison.json").read_text())["differences"]["after"]["metrics"]
    assert found["acc_main"]["value"] == 1 and found["calls"]["value"] == 0
    with pytest.raises(EvaluationError, match="is there already"):
        compare_investigations(runs, tmp_path / "compare")
    with pytest.raises(EvaluationError, match="expected two runs"):
        compare_investigations(runs[:1], tmp_path / "one")
    evaluated(tmp_path, GOOD, name="other", questions=[question("case-77")])
    with pytest.raises(EvaluationError, match="hold other cases"):
        compare_investigations([runs[0], str(tmp_path / "other")], tmp_path / "two")
    assert main(["compare", *runs, "--out", str(tmp_path / "cli")]) == 0


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """An RL file of simulated cases, as the command makes it."""
    folder = tmp_path_factory.mktemp("rows")
    build = ["build-rl", "--task", "investigation", "--out", str(folder / "rl.parquet"), "--num-incidents", "30"]
    assert main([*build, "--answer-chars", "300", "--difficulty", "easy", "--no-fault", "0", "--cannot-tell", "0"]) == 0
    return folder / "rl.parquet"


@pytest.mark.parametrize("form", ["pairs", "groups", "labels"])
def test_preference_data_of_own_investigations(rows, tmp_path, form):
    assert holds_investigations(str(rows))
    asked = read_case_questions(str(rows))

    class Mixed(Scripted):
        def investigate(self, jobs, done):
            for job in jobs:
                right = right_of(job.question)
                look = call("list_services")
                self.scripts = ([look, look, right], [look, right], [look, WRONG], [look, f"{WRONG[:-1]}}}"], NONE)
                super().investigate([job], done)

    # both right ones have the same score where calls cost nothing
    reward = {"calls_weight": 0.0}
    settings = {"task": "investigation", "data": str(rows), "questions": fingerprint(asked), "reward": reward}
    evaluate_investigations(asked, Mixed(), tmp_path / "own", settings, {}, samples=5)
    out = tmp_path / "own.parquet"
    options = OwnPairOptions(form=form, val_share=0.0)
    summary = build_investigation_pairs([tmp_path / "own"], out, options=options)
    made = pq.read_table(out).to_pylist()
    assert "the same as another of their case" in str(summary)
    if form == "pairs":
        assert len(made) == 2 * len(asked)
        first = made[0]
        assert first["prompt"] == [dict(m) for m in asked[0].messages] and first["kind"] == "right_vs_wrong"
        # whole conversations, the shorter right one chosen; calls stay as the model wrote them
        assert [m["role"] for m in first["chosen"]] == ["assistant", "tool", "assistant"]
        assert first["chosen"][0]["content"] == call("list_services")
        assert {row["rejected"][-1]["content"] for row in made[:2]} == {WRONG, NONE[0]}
    elif form == "groups":
        assert len(made) == len(asked) and len(made[0]["completions"]) == 4
    else:
        assert len(made) == 4 * len(asked) and sum(row["label"] for row in made) == 2 * len(asked)
    # what is held out is not trained on
    with pytest.raises(EvaluationError, match="are held out for validation"):
        build_investigation_pairs([tmp_path / "own"], tmp_path / "x.parquet", options=OwnPairOptions(val_share=0.9))
    for option in ("data", "trained_on"):
        with pytest.raises(EvaluationError, match="expected one file, or one for each of the 3"):
            build_investigation_pairs(
                [tmp_path / "own"] * 3, tmp_path / "x.parquet", **{option: [str(rows)] * 2}, options=options
            )
    if form == "pairs":
        command = ["build-prefs", "--from-generations", str(tmp_path / "own"), "--out", str(tmp_path / "cli.parquet")]
        assert main([*command, "--val-share", "0"]) == 0
        assert pq.read_table(tmp_path / "cli.parquet").num_rows == len(made)


def test_right_ones_alone_make_pairs_by_length(rows, tmp_path):
    asked = read_case_questions(str(rows))[:3]

    class Right(Scripted):
        def investigate(self, jobs, done):
            for job in jobs:
                right = right_of(job.question)
                many = [call("search_logs", limit=n) for n in range(1, 6)]
                self.scripts = ([call("list_services"), right], [*many, right])
                super().investigate([job], done)

    settings = {"task": "investigation", "data": str(rows), "limit": None}
    evaluate_investigations(asked, Right(), tmp_path / "own", settings, {}, samples=2)
    out = tmp_path / "own.parquet"
    build_investigation_pairs([tmp_path / "own"], out, options=OwnPairOptions(val_share=0.0))
    made = pq.read_table(out).to_pylist()
    assert {row["kind"] for row in made} == {"shorter"} and len(made) == 3
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in made)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limit": "x"}, r"settings\.json: limit: expected a number, found"),
        ({"reward": {"service_weight": 1}}, r"settings\.json: reward: .*'service_weight'"),
        ({"data": "gone.parquet"}, "was asked from gone.parquet, which is not there"),
        ({"questions": "0"}, "has changed since"),
    ],
)
def test_settings_beside_investigations_that_cannot_be_are_refused(rows, tmp_path, wrong, said):
    (tmp_path / "generations.jsonl").touch()
    (tmp_path / "settings.json").write_text(json.dumps({"task": "investigation", "data": str(rows), **wrong}))
    with pytest.raises(EvaluationError, match=said):
        build_investigation_pairs([tmp_path], tmp_path / "own.parquet")


def test_a_local_model_investigates(rows, tiny_model_dir, tmp_path, capsys):
    """A random model gives no verdict; that its answers are the loop's is shown by their lines."""
    command = ["eval", "--model", str(tiny_model_dir), "--data", str(rows), "--out", str(tmp_path / "eval")]
    command += ["--limit", "2", "--n", "2", "--temperature", "1", "--max-response-length", "300", "--dtype", "float32"]
    assert main([*command, "--tools", "max_calls=2,turn_tokens=24,verdict_tokens=32"]) == 0
    assert "2 cases, 4 investigations" in capsys.readouterr().out
    lines = read_investigations(tmp_path / "eval" / "generations.jsonl")
    assert len(lines) == 4 and all(line["score"]["json_ok"] == 0 for line in lines)
    assert all(len(line["tokens"]) == len(line["rounds"]) == len(line["turn_calls"]) for line in lines)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tools", "max_call=3"], "no such setting, did you mean max_calls"),
        (["--tools", "max_calls=x"], "expected name=number"),
        (["--reward", "service_weight=0.3"], "unknown setting 'service_weight'"),
        (["--rename", "1"], "--rename: has no meaning for investigations"),
        (["--max-response-length", "50"], "data.max_response_length=50: expected"),
        (["--max-response-length", "5000"], "lower --max-response-length"),
        (["--call-format", "nothing"], "expected the name of a tool parser of verl's"),
        (["--n", "2"], "a temperature above 0"),
    ],
)
def test_what_cannot_be_evaluated_is_told(rows, tiny_model_dir, tmp_path, capsys, more, said):
    command = ["eval", "--model", str(tiny_model_dir), "--data", str(rows), "--out", str(tmp_path / "eval")]
    assert main([*command, *more]) == 2
    assert said in capsys.readouterr().err


def reply(content="", calls=(), finish="stop"):
    message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"id": f"c{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for at, (name, arguments) in enumerate(calls)
        ]
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": {"completion_tokens": 7}}


def over_endpoint(replies, asked, **settings):
    """Investigates over a server that gives these replies; its requests and the investigation."""
    backend = EndpointInvestigator(EndpointOptions("http://host/v1", "m"), SamplingOptions())
    backend.prepare(ToolOptions(ToolSettings(**settings)), [asked])
    requests, made, left = [], [], list(replies)

    class Server:
        async def ask(self, payload, read, deadline):
            requests.append(json.loads(json.dumps(payload)))
            one = left.pop(0)
            if isinstance(one, Exception):
                raise one
            return read(one, "")

        async def close(self):
            pass

    backend._http = Server()
    from verl_aiops.evaluation.investigation.asking import CaseJob

    backend.investigate([CaseJob(asked, 0, 1)], lambda job, one: made.append(one))
    return requests, made[0]


def test_a_server_is_given_the_tools_or_reads_them_in_the_prompt():
    answers = [reply("I look.", [("search_logs", '{"service": "cart-db"}')]), reply(VERDICT)]
    requests, made = over_endpoint(answers, question(tools="template"))
    assert [tool["function"]["name"] for tool in requests[0]["tools"]][:2] == ["list_services", "get_topology"]
    assert requests[1]["messages"][-2]["tool_calls"][0]["id"] == "c0"
    assert requests[1]["messages"][-1]["role"] == "tool" and requests[1]["messages"][-1]["tool_call_id"] == "c0"
    assert "no space left on device" in requests[1]["messages"][-1]["content"]
    assert made.turns == ["I look.", VERDICT] and made.turn_calls == [1, 0] and made.tokens == [7, 7]
    requests, text = over_endpoint([reply(call(service="cart-db")), reply(VERDICT)], question())
    assert "tools" not in requests[0] and text.turn_calls == [1, 0]
    assert requests[1]["messages"][-1]["content"].startswith("<tool_response>\n")
    assert text.tool_calls[0]["result"] == made.tool_calls[0]["result"]


def test_what_a_server_may_send_instead():
    broken = over_endpoint([reply("<tool_call>{x</tool_call>"), reply(VERDICT)], question())[1]
    assert not broken.tool_calls[0]["ok"] and broken.turn_calls == [1, 0]
    away = over_endpoint([HttpFault("no route", False)], question())[1]
    assert away.error == "no route" and away.turns == []
    many = over_endpoint([reply(call()), reply(call()), reply(VERDICT)], question(), max_calls=1)[1]
    assert many.turn_calls == [1, 1] and len(many.tool_calls) == 1
    odd = {"choices": [{"message": {"content": "", "tool_calls": 3}}]}
    for wrong in ({}, {"choices": []}, {"choices": [{"message": {"content": 3}}]}, odd, "text"):
        with pytest.raises(HttpFault):
            _read(wrong, "")
    text, cut, tokens, calls, _ = _read(
        {"choices": [{"message": {"content": None, "tool_calls": [{"function": None}, 3]}, "finish_reason": "length"}]},
        "",
    )
    assert (text, cut, tokens, [one.name for one in calls]) == ("", True, None, [None])
    assert RIGHT["evidence"]
