"""Files for SFT and RL from cases: what a script quotes, which side a case is on, what a worker loads."""

import json

import pytest
from case_parts import record
from written_rows import rows_in

from verl_aiops.cli.main import main
from verl_aiops.incidents.build.sides import Split
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation import Case, load_case, read_cases, write_cases
from verl_aiops.investigation.build import build_rl, build_sft
from verl_aiops.investigation.prompts import AskOptions, listed_reasons, opening
from verl_aiops.investigation.scripted import scripted
from verl_aiops.investigation.simulator import CaseSimulator
from verl_aiops.investigation.transcript import as_text
from verl_aiops.rewards.aiops_investigation import compute_score


@pytest.fixture(scope="module")
def cases():
    return list(CaseSimulator(difficulty="mix", several=0.3, no_fault=0.1, cannot_tell=0.1).stream(60))


@pytest.fixture(scope="module")
def file(cases, tmp_path_factory):
    path = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    write_cases(cases, path)
    return path


def test_a_scripted_investigation_quotes_what_the_tools_said_and_earns_its_reward(cases):
    scores = []
    for case in cases:
        transcript = scripted(case, AskOptions(answer_chars=800))
        said = "\n".join(call.answer.text for call in transcript.calls)
        verdict = json.loads(transcript.verdict)
        assert all(call.answer.ok for call in transcript.calls)
        assert all(quote in said for quote in verdict.get("evidence", ()))
        assert all(len(call.answer.text) <= 800 for call in transcript.calls)
        calls = [
            {"name": call.name, "arguments": dict(call.arguments), "result": call.answer.text, "ok": True}
            for call in transcript.calls
        ]
        turns = [message["content"] for message in as_text(transcript.messages()) if message["role"] == "assistant"]
        extra = {"turns": turns, "tool_calls": calls, "turn_calls": [1] * len(calls) + [0]}
        truth = json.dumps(case.ground_truth())
        scores.append(compute_score("aiops_investigation", turns[-1], truth, extra)["score"])
    assert min(scores) > 0.7 and sum(scores) / len(scores) > 0.9


def rewarded(case, verdict, transcript=None):
    calls = [
        {"name": call.name, "arguments": dict(call.arguments), "result": call.answer.text, "ok": call.answer.ok}
        for call in (transcript.calls if transcript else ())
    ]
    turns = [*map(call_of, calls), verdict]
    extra = {"turns": turns, "tool_calls": calls, "turn_calls": [1] * len(calls) + [0]}
    return compute_score("aiops_investigation", verdict, json.dumps(case.ground_truth()), extra)["score"]


def call_of(call):
    return f"<tool_call>{json.dumps({'name': call['name'], 'arguments': call['arguments']})}</tool_call>"


@pytest.mark.parametrize("difficulty", ["medium", "hard"])
def test_to_say_that_nothing_is_wrong_without_a_look_pays_less_than_to_look_or_to_abstain(difficulty):
    """Over the shares that cases have by default; against a look it pays less in every case, so in any mix of them."""
    guess, abstention = (
        json.dumps({"root_causes": [], "verdict": said}) for said in ("no_fault", "not_enough_evidence")
    )
    cases = list(CaseSimulator(difficulty=difficulty).stream(80))
    assert 3 <= sum(case.no_fault for case in cases) <= 16
    guessed, abstained, looked = [], [], []
    for case in cases:
        transcript = scripted(case, AskOptions(answer_chars=800))
        guessed.append(rewarded(case, guess))
        abstained.append(rewarded(case, abstention))
        looked.append(rewarded(case, transcript.verdict, transcript))
        assert looked[-1] > guessed[-1] + 0.04
    assert sum(guessed) / len(cases) < 0.15 < 0.2 < sum(abstained) / len(cases) < 0.4 < 0.9 < sum(looked) / len(cases)


def test_a_script_is_the_same_for_a_seed_and_differs_between_seeds(cases):
    assert [scripted(case).messages() for case in cases[:9]] == [scripted(case).messages() for case in cases[:9]]
    assert any(scripted(case).messages() != scripted(case, seed=1).messages() for case in cases[:9])


def test_whose_truth_nobody_knows_cannot_be_scripted():
    with pytest.raises(IncidentError, match="expected root_causes, no_fault or cannot_tell"):
        scripted(Case(id="a", source="b", symptom="c"))
    recorded = {"answers": [{"name": "get", "text": "x"}]}
    with pytest.raises(IncidentError, match="there is no script"):
        scripted(Case.from_dict(record(recorded=recorded)))


def test_recorded_tools_are_asked_along_a_path_and_long_answers_at_their_end(tmp_path):
    answers = [
        {"name": "get", "arguments": {"kind": "pods"}, "text": "cart Pending"},
        {
            "name": "describe",
            "arguments": {"name": "cart"},
            "text": "Name: cart\n" + "filler\n" * 90 + "cart: no node fits",
        },
    ]
    paths = [[{"name": "get", "arguments": {"kind": "Pods"}}, {"name": "describe", "arguments": {"name": "cart"}}]]
    paths.append([{"name": "get", "arguments": {"kind": "pods"}}])
    row = record(
        recorded={"answers": answers, "paths": paths}, root_causes=[{"component": "cart", "reason": "no_node"}]
    )
    case = Case.from_dict(row)
    assert Case.from_dict(case.to_dict()) == case
    transcript = scripted(case, AskOptions(answer_chars=200))
    assert [call.name for call in transcript.calls] == ["get", "describe", "describe"]
    assert transcript.calls[2].arguments["offset"] > 400 and transcript.calls[2].answer.text.endswith("no node fits")
    verdict = json.loads(transcript.verdict)
    assert verdict["root_causes"] == [{"component": "cart", "reason": "no_node"}]
    assert verdict["evidence"] == ["Name: cart", "cart: no node fits"]
    assert [call.name for call in scripted(case, seed=1).calls] == ["get"]
    paths[1][0]["arguments"] = {"kind": "nodes"}
    with pytest.raises(IncidentError, match=r"recorded.paths\[1\]\[0\]': expected a call that has an answer"):
        Case.from_dict(record(recorded={"answers": answers, "paths": paths}))
    with pytest.raises(IncidentError, match=r"recorded.paths\[0\]\[0\]': expected {"):
        Case.from_dict(record(recorded={"answers": answers, "paths": [["get"]]}))


def test_calls_as_text_are_read_by_verls_parser_and_are_what_qwens_template_writes():
    transcript = scripted(Case.from_dict(record()))
    plain = as_text(transcript.messages())
    assert [set(message) for message in plain] == [{"role", "content"}] * len(plain)
    calls = [message["content"] for message in plain if message["role"] == "assistant"][:-1]
    for text, call in zip(calls, transcript.calls):
        head, _, rest = text.partition("<tool_call>\n")
        body, end, tail = rest.partition("\n</tool_call>")
        assert (head, tail) == ("", "") and end
        assert json.loads(body) == {"name": call.name, "arguments": dict(call.arguments)}


def test_the_prompt_is_one_message_with_tools_reasons_and_alert():
    case = Case.from_dict(record(symptom="Checkout <|im_end|> fails"))
    (message,) = opening(case)
    text = message["content"]
    assert "- search_logs(service, level, contains, start, end, limit, offset): " in text
    assert "Alert at 14:03:00\nCheckout ‹|im_end|› fails\n</incident>" in text
    assert '["connections_exhausted", "disk_full"]' in text or '["disk_full", "connections_exhausted"]' in text
    assert "search_logs" not in opening(case, AskOptions(tools="template"))[0]["content"]
    chinese = opening(Case.from_dict(record(lang="zh")))[0]["content"]
    assert chinese.startswith("调查一起故障") and "告警时间 14:03:00" in chinese


def test_listed_reasons_hold_every_right_one_no_alias_and_tell_nothing_by_their_place():
    names = [f"reason-{number}" for number in range(30)]
    places = []
    for number in range(60):
        causes = [{"component": "db", "reason": "reason-3", "aliases": {"reason": ["reason-4"]}}, {"component": "edge"}]
        case = Case.from_dict(record(id=f"c{number}", root_causes=causes, propagation=None, reasons=names))
        listed = listed_reasons(case, AskOptions(max_reasons=6))
        assert len(listed) == 6 and "reason-3" in listed and "reason-4" not in listed
        places.append(listed.index("reason-3"))
    assert len(set(places)) == 6
    assert len(listed_reasons(case, AskOptions(max_reasons=0))) == 29
    assert listed_reasons(Case.from_dict(record(reasons=None)), AskOptions()) == ()


def test_rl_rows_name_their_case_and_stay_small(file, cases, tmp_path):
    summary = build_rl(file, tmp_path / "rl.parquet", split=Split(0.2, 0.1), options=AskOptions(answer_chars=700))
    written = [row for side in ("", ".val", ".test") for row in rows_in(tmp_path / f"rl{side}.parquet")]
    assert len(written) == len(cases) == sum(side.rows for side in summary.sides.values())
    by_id = {case.id: case for case in cases}
    for row in written:
        extra = row["extra_info"]
        case = load_case(extra["case_file"], extra["id"])
        assert case == by_id[extra["id"]]
        assert (row["data_source"], row["agent_name"], extra["tools"], extra["answer_chars"]) == (
            *("aiops_investigation", "aiops_tools"),
            *("prompt", 700),
        )
        truth = json.loads(row["reward_model"]["ground_truth"])
        assert [cause["component"] for cause in truth.get("root_causes", ())] == [
            cause.component for cause in case.root_causes
        ]
        assert len(truth["reasons"]) == 8 and len(json.dumps(row)) < 6000
    assert [row["extra_info"]["index"] for row in rows_in(tmp_path / "rl.parquet")] == list(
        range(summary.sides["train"].rows)
    )


def test_sft_and_rl_have_a_case_on_the_same_side(file, tmp_path):
    held_out = Split(0.2, 0.1, hold_out=("simulator/fleet",))
    build_rl(file, tmp_path / "rl.parquet", split=held_out)
    build_sft(file, tmp_path / "sft.parquet", split=held_out)
    for side in ("", ".val", ".test", ".unseen"):
        ids = [row["extra_info"]["id"] for row in rows_in(tmp_path / f"rl{side}.parquet")]
        assert ids == [row["id"] for row in rows_in(tmp_path / f"sft{side}.parquet")]
        sources = {row["source"] for row in rows_in(tmp_path / f"sft{side}.parquet")}
        assert sources == {"simulator/fleet"} if side == ".unseen" else "simulator/fleet" not in sources


def test_records_of_one_fault_stay_together(tmp_path):
    kept = [Case.from_dict(record(id=f"a{at}", group=f"f{at // 5}", source="shop")) for at in range(40)]
    one = Case.from_dict(record(id="b", group="f1", source="bank"))
    write_cases([*kept, one], tmp_path / "cases.jsonl")
    build_rl(tmp_path / "cases.jsonl", tmp_path / "rl.parquet", split=Split(0.3, hold_out=("bank",)))
    groups = [
        {row["extra_info"]["group"] for row in rows_in(tmp_path / f"rl{side}.parquet")}
        for side in ("", ".val", ".unseen")
    ]
    assert groups[2] == {"f1"} and not groups[0] & groups[1] and "f1" not in groups[0] | groups[1]
    with pytest.raises(IncidentError, match="hold out source 'moon': no case of .* there are: bank, shop"):
        build_rl(tmp_path / "cases.jsonl", tmp_path / "two.parquet", split=Split(0.3, hold_out=("moon",)))


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    recorded = {"answers": [{"name": "get", "text": "x"}]}
    given = [record(id="a"), record(id="b", root_causes=None, propagation=None), record(id="c", recorded=recorded)]
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(json.dumps({**row, "pod": 1}) for row in given), encoding="utf-8")
    told = str(build_sft(path, tmp_path / "sft.jsonl", split=Split(0)))
    assert "1 left out: nobody knows" in told and "1 left out: their tool answers are recorded" in told
    assert "fields that nothing reads: pod 3" in told and "train: 1 row (" in told
    assert build_rl(path, tmp_path / "rl.jsonl", split=Split(0)).sides["train"].rows == 2
    assert "- get()" in json.loads((tmp_path / "rl.jsonl").read_text().split("\n")[1])["prompt"][0]["content"]
    with pytest.raises(IncidentError, match="nothing to write for val from 1 case;.*no val side"):
        build_sft(path, tmp_path / "two.jsonl", split=Split(1e-9))
    assert not (tmp_path / "two.jsonl").exists()


def test_calls_in_a_field_of_their_own_are_jsonl(file, tmp_path):
    build_sft(file, tmp_path / "sft.jsonl", calls="field", options=AskOptions(tools="template"))
    row = json.loads((tmp_path / "sft.jsonl").read_text().split("\n")[0])
    asked = next(message for message in row["messages"] if message.get("tool_calls"))
    assert isinstance(asked["tool_calls"][0]["function"]["arguments"], dict)
    with pytest.raises(IncidentError, match="written as JSONL"):
        build_sft(file, tmp_path / "sft.parquet", calls="field")
    with pytest.raises(IncidentError, match="have the tools in the prompt"):
        build_sft(file, tmp_path / "sft.parquet", options=AskOptions(tools="template"))


def test_commands_make_all_of_it(tmp_path, capsys):
    out = tmp_path / "cases.jsonl"
    small = ["--num-incidents", "30", "--log-rate", "0", "--metrics", "0", "--request-rate", "0.5"]
    assert main(["simulate", "--cases", "--out", str(out), "--hold-out-wordings", "0.3", *small]) == 0
    assert len(list(read_cases(out))) == 30 and len(list(read_cases(tmp_path / "cases.unseen.jsonl"))) == 3
    task = ["--task", "investigation"]
    assert main(["build-sft", *task, "--out", str(tmp_path / "sft.parquet"), "--cases", str(out)]) == 0
    assert main(["build-rl", *task, "--out", str(tmp_path / "rl.parquet"), "--hold-out-wordings", "0.3", *small]) == 0
    assert len(rows_in(tmp_path / "rl.unseen.parquet")) == 3
    row = rows_in(tmp_path / "rl.parquet")[0]["extra_info"]
    assert row["case_file"] == str(tmp_path / "rl.cases.jsonl")
    assert "one root cause" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, told",
    [
        ("build-sft --task investigation --style direct", "--style belongs to --task triage"),
        ("build-rl --task investigation --model x", "--model belongs to --task triage"),
        ("build-rl --several 0.5", "--several belongs to --task investigation"),
        ("build-sft --cases x.jsonl", "--task triage; add --task investigation"),
        (
            "build-rl --task investigation --incidents x.jsonl",
            "--incidents belongs to --task triage, found --task investigation; name the file by --cases",
        ),
        ("build-rl --task investigation --cases x.jsonl --lang zh", "--lang belongs to the simulator"),
        ("simulate --before 60", "--before belongs to cases"),
        ("simulate --cases --taxonomy-out x.json", "a case lists its own reasons"),
        ("build-rl --task investigation --cases absent.jsonl", "absent.jsonl: no such file"),
        ("build-rl --task investigation --num-incidents 0", "--num-incidents: expected at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_told(tmp_path, capsys, command, told):
    out = tmp_path / ("out.jsonl" if command.startswith("simulate") else "out.parquet")
    assert main([*command.split(), "--out", str(out)]) == 2
    assert told in capsys.readouterr().err and not out.exists()
