"""`verl-aiops investigate`: a served model over a folder of exports, and what is printed of it."""

import json

import pytest
from case_parts import record
from house_parts import make_house

from verl_aiops.cli.main import main
from verl_aiops.http import HttpFault, JsonClient

VERDICT = {
    "root_causes": [{"component": "db", "reason": "connections_exhausted"}],
    "propagation": [{"from": "db", "to": "orders"}],
    "evidence": ["too many clients already", "never said"],
}
CALL = '<tool_call>\n{"name": "search_logs", "arguments": {"service": "db"}}\n</tool_call>'


@pytest.fixture
def served(monkeypatch):
    """A server with these texts, one after another; its requests."""
    state = {"replies": [], "requests": []}

    async def ask(self, payload, read, deadline=None):
        state["requests"].append(json.loads(json.dumps(payload)))
        text = state["replies"].pop(0)
        if isinstance(text, Exception):
            raise text
        message = {"role": "assistant", "content": text}
        return read({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}, "")

    async def close(self):
        pass

    monkeypatch.setattr(JsonClient, "ask", ask)
    monkeypatch.setattr(JsonClient, "close", close)
    monkeypatch.setattr(JsonClient, "reach", close)
    return state


def investigate(source, *more):
    return main(["investigate", str(source), "--endpoint", "http://host:8000/v1", "--model", "m", *map(str, more)])


def test_cause_path_quotes_and_calls_of_a_folder(served, tmp_path, capsys):
    served["replies"] = [CALL, json.dumps(VERDICT)]
    assert investigate(make_house(tmp_path / "house"), "--id", "abc123") == 0
    assert capsys.readouterr().out.split("\n") == [
        "abc123: CheckoutErrors: Checkout fails",
        "  cause: db (connections_exhausted)",
        "  path: db -> orders",
        '  evidence: "too many clients already" [search_logs]',
        '  evidence: "never said" [stands in no answer of a tool]',
        "  calls: 1",
        '    search_logs {"service": "db"}',
        "",
    ]
    asked = served["requests"][0]["messages"][0]["content"]
    assert "Checkout fails" in asked and '"disk_full"' in asked and "truth" not in asked


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ('{"root_causes": [], "verdict": "not_enough_evidence"}', 0, "  not enough evidence\n"),
        ('{"root_causes": [], "verdict": "no_fault"}', 0, "  no fault found\n"),
        ("<think>db?</think>" + json.dumps(VERDICT), 0, "  cause: db (connections_exhausted)\n"),
        ("I do not know", 1, "  no verdict: no_object\n"),
        (HttpFault("no route", False), 1, "  no verdict: no route\n"),
    ],
)
def test_what_else_a_model_may_end_with(served, tmp_path, capsys, text, code, told):
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps(record()), encoding="utf-8")
    served["replies"] = [text]
    assert investigate(file) == code
    out = capsys.readouterr()
    assert told in out.out and ("1 of 1 case got no verdict" in out.err) == bool(code)


def test_a_line_of_json_a_case(served, tmp_path, capsys):
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps(record(id=name)) + "\n" for name in "ab"), encoding="utf-8")
    served["replies"] = ['{"root_causes": [], "verdict": "no_fault"}'] * 2
    assert investigate(file, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.strip().split("\n")]
    assert sorted(line["id"] for line in lines) == ["a", "b"] and lines[0]["verdict"]["verdict"] == "no_fault"
    assert set(lines[0]) == {"id", "verdict", "error", "quoted_from_nowhere", "calls"}


def test_what_a_model_names_stays_on_its_line_and_can_be_printed(served, tmp_path, capsys):
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps(record()), encoding="utf-8")
    causes = [{"component": 'db\n  evidence: "seen" [search_logs]', "reason": "\ud800"}]
    forged = json.dumps({"root_causes": causes, "propagation": [{"from": "a\nb", "to": "c"}]})
    asks = json.dumps({"name": "\ud800", "arguments": {"service": "\udfff"}})
    served["replies"] = [f"<tool_call>{asks}</tool_call>", forged] * 2
    assert investigate(file) == 0
    lines = capsys.readouterr().out.split("\n")
    assert (
        lines[1] == '  cause: db\\x0a  evidence: "seen" [search_logs] (\\ud800)' and lines[2] == "  path: a\\x0ab -> c"
    )
    assert lines[3] == "  calls: 1"
    assert investigate(file, "--json") == 0
    out = capsys.readouterr().out
    out.encode("utf-8")
    assert json.loads(out)["verdict"]["root_causes"] == causes


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--id", "z"), "--id z: "),
        (("--answer-chars", 3), "answer_chars: expected 200 or more"),
        (("--calls", 0), "max_calls"),
    ],
)
def test_what_cannot_be_asked_is_told_first(served, tmp_path, capsys, more, told):
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps(record()), encoding="utf-8")
    assert investigate(file, *more) == 2
    assert told in capsys.readouterr().err and not served["requests"]
