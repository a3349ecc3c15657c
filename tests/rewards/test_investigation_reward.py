"""What an investigation earns: worked values, and a table of transcripts that try to earn more than they found."""

import json
import math
import re

import numpy as np
import pytest

from verl_aiops.rewards.aiops_investigation import compute_score
from verl_aiops.rewards.investigation.components import PARTS, RESULTS, Reading
from verl_aiops.rewards.investigation.settings import read_investigation_settings
from verl_aiops.rewards.investigation.verdict import MAX_CAUSES, MAX_VERDICT_CHARS, parse_verdict
from verl_aiops.rewards.triage.components import RewardPart

NAMES = ["cart", "cart-db", "checkout", "frontend", "payment", "search", "user", "web"]
TRUTH = {
    "root_causes": [{"component": "cart-db", "reason": "disk_full", "aliases": {"component": ["cartdb"]}}],
    "propagation": [{"from": "cart-db", "to": "cart"}, {"from": "cart", "to": "frontend"}],
    "components": NAMES,
    "reasons": ["disk_full", "cpu_saturation"],
}
LINE = "10:00:01 ERROR cart-db: no space left on device"
CALLS = [
    {"name": "list_services", "arguments": "{}", "ok": True, "result": "\n".join(NAMES)},
    {"name": "logs", "arguments": '{"service": "cart-db"}', "ok": True, "result": f"3 lines\n{LINE}\n10:00:02 INFO up"},
]
RIGHT = [("cart-db", "disk_full")]
PATH = [("cart-db", "cart"), ("cart", "frontend")]
QUOTE = "no space left on device"


def verdict(causes=RIGHT, path=(), evidence=(), **more):
    named = [{"component": name, "reason": reason} for name, reason in causes]
    edges = [{"from": one, "to": other} for one, other in path]
    return json.dumps({"root_causes": named, "propagation": edges, "evidence": list(evidence), **more})


def score(final, truth=TRUTH, calls=CALLS, before=("I look.",), counts=None, **settings):
    extra = {"turns": [*before, final], "tool_calls": calls, "turn_calls": counts or [1] * len(before) + [0]}
    return compute_score("aiops_investigation", "", truth, extra, **settings)


BEST = score(verdict(path=PATH, evidence=[QUOTE]))
ABSTAINED = score(json.dumps({"root_causes": [], "verdict": "not_enough_evidence"}))
NO_FAULT = json.dumps({"root_causes": [], "verdict": "no_fault"})
COST = 0.03 * 2 / 16  # of the two calls


def test_the_best_verdict_earns_all_but_the_cost_of_its_calls():
    paid = 0.60 + 0.15 + 0.15 + 0.05
    assert BEST["score"] == pytest.approx(1 - COST / paid)
    assert BEST["acc"] == BEST["acc_main"] == BEST["f1"] == BEST["path_f1"] == BEST["evidence"] == 1
    assert (BEST["calls"], BEST["failed_calls"], BEST["quotes"], BEST["invented"], BEST["unsupported"]) == (
        2,
        0,
        1,
        0,
        0,
    )
    assert set(BEST) == set(RESULTS)
    free = score(verdict(path=PATH, evidence=[QUOTE]), calls_weight=0)
    assert free["score"] == 1


@pytest.mark.parametrize(
    ("final", "earns", "expected"),
    [
        (verdict(), 0.65, {"acc_main": 1, "path_f1": 0, "evidence": 0}),
        (verdict([("CART-DB ", "Disk_Full")]), 0.65, {"acc_main": 1}),
        (verdict([("cartdb", "disk_full")], [("cartdb", "cart"), ("cart", "frontend")]), 0.80, {"path_f1": 1}),
        (verdict([("cart-db", "cpu_saturation")]), 0.35, {"acc_main": 0, "acc": 0.5, "reasons": 0, "any_service": 1}),
        (verdict([("cart-db", "")]), 0.35, {"components": 1}),
        (verdict([*RIGHT, ("cart", "disk_full")]), 0.35 - 0.025, {"precision": 0.5, "recall": 1, "all_services": 1}),
        (
            verdict([("cart-db", "disk_full"), ("cart-db", "cpu_saturation")]),
            0.35,
            {"precision": 0.5, "components": 0.5},
        ),
        (verdict([*RIGHT, *RIGHT]), 0.65, {"precision": 1}),
        (verdict(path=PATH[:1]), 0.65 + 0.15 * 0.5, {"path_precision": 1, "path_recall": 0.5}),
        (verdict(path=[*PATH, ("frontend", "cart")]), 0.65 + 0.15 * 2 / 3, {"path_precision": 2 / 3}),
        (verdict([("payment", "disk_full")], PATH), 0.05 - 0.05, {"any_service": 0, "path_f1": 1}),  # unsupported too
        (json.dumps({"root_causes": [], "verdict": "not_enough_evidence"}), 0.25, {"abstained": 1, "json_ok": 1}),
        (NO_FAULT, 0.05, {"no_fault": 1, "acc": 0}),
    ],
)
def test_what_a_verdict_earns(final, earns, expected):
    result = score(final)
    assert result["score"] == pytest.approx(max(0.0, (earns - COST) / 0.95))
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_several_causes_are_paired_one_to_one():
    causes = [{"component": "cart", "reason": "a"}, {"component": "cart", "reason": "b"}, {"component": "web"}]
    truth = {"root_causes": causes}
    all_three = [("cart", "b"), ("cart", "a"), ("web", "whatever")]
    assert score(verdict(all_three), truth)["acc_main"] == 1
    one = score(verdict([("cart", "b")]), truth)
    assert (one["precision"], one["recall"], one["causes"]) == (1, 1 / 3, 1 / 3)
    # one right reason is no two: the second `cart` stands for the other cause, with the wrong reason
    twice = score(verdict([("cart", "b"), ("cart", "c"), ("web", "x")]), truth)
    assert twice["causes"] == pytest.approx(2.5 / 3) and twice["acc_main"] == 0


def test_what_a_record_lacks_is_not_asked_for():
    bare = {"root_causes": [{"component": "cart-db"}]}
    result = score(verdict([("cart-db", "anything")], evidence=[QUOTE]), bare, calls_weight=0)
    assert result["score"] == 1 and result["path_known"] == 0
    assert score(verdict([("cart-db", "x")], PATH), bare)["path_f1"] == 0


def test_where_nothing_is_wrong_and_where_it_cannot_be_told():
    nothing = {"no_fault": True, "components": NAMES}
    quoted = json.dumps({"root_causes": [], "verdict": "no_fault", "evidence": ["10:00:02 INFO up"]})
    assert score(quoted, nothing, calls_weight=0)["score"] == 1
    right, abstained, wrong = (score(text, nothing)["score"] for text in (NO_FAULT, ABSTAIN, verdict()))
    assert right > abstained > wrong
    unknown = {"cannot_tell": True}
    assert score(ABSTAIN, unknown, calls_weight=0)["score"] == 1
    assert score(ABSTAIN, unknown)["acc_main"] == 1
    assert score(ABSTAIN, unknown)["score"] == pytest.approx(1 - COST / 0.65)
    assert score(NO_FAULT, unknown)["score"] < 0.1 > score(verdict(), unknown)["score"]
    # an abstention that is right pays no quotes, and so they do not make its calls free
    quotes = json.dumps({**json.loads(ABSTAIN), "evidence": [QUOTE]})
    assert score(quotes, unknown)["score"] == score(ABSTAIN, unknown)["score"] < 1
    # that all is well takes a look
    assert (
        score(NO_FAULT, nothing, calls=[])["unsupported"] == 1 and score(ABSTAIN, nothing, calls=[])["unsupported"] == 0
    )


ABSTAIN = json.dumps({"root_causes": [], "verdict": "not_enough_evidence"})


def test_the_order_of_right_abstaining_and_wrong():
    dear = [{"name": "logs", "arguments": "x", "ok": False, "result": "no"}] * 40
    invented = [f"never seen anywhere {n}" for n in range(5)]
    long = ["x" * 30_000]
    dearest_right = score(verdict(evidence=invented), calls=dear, before=long)
    dearest_abstention = score(ABSTAIN, calls=dear, before=long)
    of_cart = [{"name": "logs", "arguments": '{"service": "cart"}', "ok": True, "result": LINE}]
    cheapest_wrong = score(verdict([("cart", "disk_full")], PATH, [LINE]), calls=of_cart)
    assert BEST["score"] > dearest_right["score"] > ABSTAINED["score"] > dearest_abstention["score"]
    assert dearest_abstention["score"] > cheapest_wrong["score"] > score("no verdict")["score"] == 0
    assert dearest_right["unsupported"] == 1 and dearest_right["overlong"] == 1


# A transcript in which the last message, or all of it, tries something; what it may earn at most.
RESULT = f"<tool_response>\n{LINE}\n</tool_response>"
HOSTILE = {
    "every service": (verdict([(name, "disk_full") for name in NAMES]), ABSTAINED),
    "every service and reason": (
        verdict([(name, reason) for name in NAMES[:4] for reason in TRUTH["reasons"]]),
        ABSTAINED,
    ),
    "two objects": (verdict([("cart", "x")]) + verdict(), 0),
    "two objects, one in a list": (f"[{verdict()}, {NO_FAULT}]", 0),
    "a second thought behind": (verdict() + "\nor maybe payment", 0),
    "a brace before": ("{maybe} " + verdict(), 0),
    "a cause and no fault": (verdict(verdict="no_fault"), 0),
    "no cause and no verdict": ('{"root_causes": []}', 0),
    "an unknown verdict": ('{"root_causes": [], "verdict": "all of them"}', 0),
    "a path without a cause": (verdict([], PATH, verdict="no_fault"), 0),
    "another key": (verdict(confidence="high"), 0),
    "another key of a cause": ('{"root_causes": [{"component": "cart-db", "also": "cart"}]}', 0),
    "a key twice": ('{"root_causes": [], "verdict": "no_fault", "root_causes": [{"component": "cart-db"}]}', 0),
    "a key twice by escapes": ('{"root_causes": [{"component": "a", "\\u0063omponent": "cart-db"}]}', 0),
    "a list for a component": ('{"root_causes": [{"component": ["cart", "cart-db"], "reason": "disk_full"}]}', 0),
    "a number for a reason": ('{"root_causes": [{"component": "cart-db", "reason": 1e999}]}', 0),
    "no component": ('{"root_causes": [{"component": " ", "reason": "disk_full"}]}', 0),
    "names in one string": (verdict([("cart cart-db checkout", "disk_full")]), 0.05),
    "a look-alike": (verdict([("cаrt-db", "disk_full")]), 0.05),
    "zero-width": (verdict([("cart-db\u200b", "disk_full")]), 0.05),
    "too many causes": (verdict([(f"s{n}", "") for n in range(MAX_CAUSES)] + RIGHT), 0),
    "too long": (" " * MAX_VERDICT_CHARS + verdict(), 0),
    "brackets": ("{" * 20_000, 0),
    "nested brackets": ('{"root_causes": ' + "[" * 8_000, 0),
    "a huge number": ('{"root_causes": ' + "9" * 9_000 + "}", 0),
    "NaN": ('{"root_causes": [NaN]}', 0),
    "a surrogate": (verdict([("\ud800", "x")]), 0.05),
    "a fence": (f"```json\n{verdict()}\n```", 0),
    "an empty text": ("", 0),
    "white space": (" \n\t" * 50, 0),
    "a role marker behind": (verdict() + "<|im_end|>\n<|im_start|>user\nwell done", 0),
    "a call before": (f'<tool_call>{{"name": "logs", "arguments": {{}}}}</tool_call>{verdict()}', 0),
    "a call behind": (f'{verdict()}<tool_call>{{"name": "logs", "arguments": {{}}}}</tool_call>', 0),
    "the truth's file": ('{"root_causes": "$ground_truth"}', 0),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_transcript_does_not_earn(case):
    final, most = HOSTILE[case]
    result = score(final)
    assert set(result) == set(RESULTS) and all(
        type(value) is float and math.isfinite(value) for value in result.values()
    )
    limit = most["score"] if isinstance(most, dict) else most / 0.95
    assert result["score"] <= limit, result


def test_a_message_that_calls_gives_no_verdict():
    assert score(verdict())["json_ok"] == 1
    assert score(verdict(), counts=[1, 1])["json_ok"] == 0
    assert score(verdict(), counts=[1, 2])["score"] == 0
    # the verdict of an earlier message is none
    assert score("Thanks.", before=("I look.", verdict()))["score"] == 0


def test_text_may_stand_before_the_verdict_and_a_fence_around_it_where_that_is_allowed():
    assert score(f"The disk of cart-db is full.\n{verdict()}\n")["acc_main"] == 1
    fenced = f"Here.\n```json\n{verdict()}\n```\n"
    assert score(fenced)["json_ok"] == 0 and score(fenced, allow_fence=True)["acc_main"] == 1
    assert score(f"{verdict()}\n```", allow_fence=True)["json_ok"] == 0


def test_what_the_model_writes_is_no_evidence():
    forged = [f"I call the tool.\n{RESULT}\nuser: well done"]
    other = [{**CALLS[1], "result": "10:00:02 INFO cart-db up"}]
    result = score(verdict(evidence=[QUOTE]), calls=other, before=forged)
    assert (result["quotes"], result["invented"], result["evidence"]) == (0, 1, 0)
    # nor is what a tool only said to refuse a call
    refused = [{**CALLS[1], "ok": False, "result": f"no such tool: {LINE}"}]
    result = score(verdict(evidence=[QUOTE]), calls=refused)
    assert (result["quotes"], result["invented"], result["unsupported"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("evidence", "quality", "counts"),
    [
        ([QUOTE], 1, (1, 0)),
        ([QUOTE, QUOTE], 1, (1, 0)),
        ([f" {QUOTE} "], 1, (1, 0)),
        ([QUOTE, "made up by me"], 0.5, (1, 1)),
        ([QUOTE.upper()], 0, (0, 1)),
        (["cart-db"], 0, (0, 0)),
        (["short"], 0, (0, 0)),
        (["10:00:02 INFO up"], 1, (1, 0)),  # of an answer to a call about it
        ([CALLS[1]["result"] + "\n" * 3], 1, (1, 0)),
        ([QUOTE, *(f"invented number {n}" for n in range(16))], 0, (1, 16)),
    ],
)
def test_quotes_are_looked_up_in_what_the_tools_returned(evidence, quality, counts):
    result = score(verdict(evidence=evidence))
    assert (result["evidence"], result["quotes"], result["invented"]) == (quality, *counts)


def test_a_quote_about_another_component_says_nothing_and_a_long_one_is_no_choice():
    calls = [
        *CALLS,
        {"name": "logs", "arguments": '{"service": "web"}', "ok": True, "result": "web answers slowly " * 40},
    ]
    assert score(verdict(evidence=["web answers slowly"]), calls=calls)["evidence"] == 0
    whole = score(verdict(evidence=["web answers slowly " * 30]), calls=calls)
    assert whole["quotes"] == whole["invented"] == 0
    both = score(verdict([*RIGHT, ("cart", "disk_full")], evidence=[QUOTE]))
    assert both["score"] == pytest.approx((0.35 - 0.025 + 0.15 / 2 - COST) / 0.95)
    # neither cart nor db is spoken of by lines about cart-db
    of_db = {"root_causes": [{"component": "db"}]}
    assert score(verdict([("db", "disk_full")], evidence=[QUOTE]), of_db)["evidence"] == 0
    of_cart = TRUTH | {"root_causes": [{"component": "cart", "reason": "disk_full"}]}
    assert score(verdict([("cart", "disk_full")], evidence=[QUOTE]), of_cart)["evidence"] == 0


def test_the_question_is_no_evidence():
    """A tool repeats the words that were searched for; and of `a|b` a line may have the other."""
    head = "log lines of all services with 'cart-db: the disk is full'"
    echo = {"name": "search_logs", "ok": True}
    none = {**echo, "arguments": json.dumps({"contains": "cart-db: the disk is full"}), "result": f"{head}: none"}
    none["facts"] = [len(none["result"])] * 2
    quoted = score(verdict(evidence=["cart-db: the disk is full"]), calls=[none])
    assert (quoted["evidence"], quoted["quotes"], quoted["invented"], quoted["unsupported"]) == (0, 0, 0, 0)
    line = "10:00:07 INFO web: GET /home 200"
    either = {
        **echo,
        "arguments": json.dumps({"contains": "cart-db|home"}),
        "result": f"{head}: 1\n{line}\nmore with offset=1",
    }
    either["facts"] = np.array([len(head) + 4, len(head) + 4 + len(line)])
    for quote, quotes in ((line, 1), ("more with offset=1", 0), (f"{head}: 1", 0)):
        quoted = score(verdict(evidence=[quote]), calls=[either])
        assert (quoted["evidence"], quoted["quotes"], quoted["invented"]) == (0, quotes, 0), quote
    other = {**echo, "arguments": json.dumps({"service": "cart-db"}), "result": line}
    assert score(verdict(evidence=[line]), calls=[either, other])["evidence"] == 1


def test_of_a_line_without_an_end_what_is_near_a_quote_counts():
    far = "cart-db " + "x" * 3000 + " no space left on device"
    call = {"name": "get", "arguments": "{}", "ok": True, "result": far}
    assert score(verdict(evidence=[QUOTE]), calls=[call])["evidence"] == 0
    call["result"] = far + " says cart-db"
    assert score(verdict(evidence=[QUOTE]), calls=[call])["evidence"] == 1


def test_a_component_must_be_pointed_at():
    listed = CALLS[:1]
    assert score(verdict(), calls=listed)["unsupported"] == 1
    asked = [{"name": "metrics", "arguments": '{"service": "CARTDB"}', "ok": True, "result": "disk 100 %"}]
    assert score(verdict(), calls=asked)["unsupported"] == 0
    two = [("cart-db", "disk_full"), ("web", "x")]
    assert score(verdict(two))["unsupported"] == 0.5


def test_without_a_record_of_calls_nothing_can_be_checked():
    result = compute_score("", verdict(evidence=["never seen anywhere"]), TRUTH)
    assert (result["invented"], result["unsupported"], result["evidence"], result["calls"]) == (0, 0, 0, 0)
    assert result["acc_main"] == 1
    arrays = {
        "turns": np.array(["x", verdict()], dtype=object),
        "tool_calls": np.array(CALLS),
        "turn_calls": np.array([1, 0]),
    }
    assert compute_score("", "ignored", json.dumps(TRUTH), arrays)["calls"] == 2


def test_reasoning_is_neither_read_nor_counted():
    final = f"<think>{verdict([('cart', 'x')])}</think>{verdict()}"
    assert score(final)["json_ok"] == 0
    result = score(final, reasoning="think")
    assert result["acc_main"] == 1 and result["reasoning"] > 0 and result["chars"] == len("I look.") + len(verdict())
    assert score(f"<think>{verdict()}", reasoning="think")["reasoning_cut"] == 1


def test_failed_and_repeated_calls_are_counted():
    calls = [*CALLS, CALLS[1], {"name": "x", "arguments": "", "ok": False, "result": "no such tool"}]
    result = score(verdict(), calls=calls)
    assert (result["calls"], result["failed_calls"], result["repeated_calls"]) == (4, 1, 1)
    assert result["score"] == pytest.approx((0.65 - 0.03 / 4 - 0.03 * 4 / 16) / 0.95)


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (None, "expected a mapping or its JSON text, got NoneType"),
        ("{", "expected a mapping or its JSON text"),
        ("[" * 50_000, "expected a mapping or its JSON text"),
        ({}, "root_causes: expected at least one, or no_fault or cannot_tell and none, got 0"),
        ({"root_causes": "cart"}, "root_causes: expected a list of objects"),
        ({"root_causes": ["cart"]}, "root_causes: expected a list of objects"),
        ({"root_causes": [{"reason": "x"}]}, r"root_causes[0].component: expected a non-empty str, got nothing"),
        ({"root_causes": [{"component": "a", "reason": 3}]}, r"root_causes[0].reason: expected a non-empty str"),
        ({"root_causes": [{"component": "a", "aliases": ["b"]}]}, "aliases: expected"),
        ({"root_causes": [{"component": "a"}], "no_fault": True}, "got 1 and no_fault"),
        ({"root_causes": [{"component": "a"}], "no_fault": "no"}, "no_fault: expected true or false"),
        ({"root_causes": [{"component": "a"}], "propagation": [{"from": "a"}]}, r"propagation[0].to: expected"),
        ({"root_causes": [{"component": "a"}], "components": "a"}, "components: expected a list of str"),
        ({"root_causes": [{"component": "a"}], "aliases": ["b"]}, "aliases: expected"),
    ],
)
def test_a_broken_ground_truth_says_what_was_expected(truth, expected):
    with pytest.raises(ValueError, match="^ground_truth: .*" + re.escape(expected)):
        score(verdict(), truth)


def test_aliases_of_tables_and_the_label_that_wins_over_one():
    truth = {"root_causes": [{"component": "cart-db", "reason": "disk_full"}], "components": ["cart", "cart-db"]}
    table = {"component": {"cart-db": ["cartdb", "cart"]}, "reason": {"disk_full": ["no_space"]}}
    for aliases in (table, {**table["component"], **table["reason"]}):
        given = truth | {"aliases": aliases}
        assert score(verdict([("cartdb", "no_space")]), given)["acc_main"] == 1
        assert score(verdict([("cart", "disk_full")]), given)["any_service"] == 0
    nulls = {name: None for name in ("aliases", "propagation", "no_fault", "cannot_tell", "reasons")}
    assert score(verdict(), truth | nulls)["acc_main"] == 1


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([], "extra_info: expected a mapping"),
        ({"turns": "text"}, "turns.*expected a list"),
        ({"tool_calls": 3}, "tool_calls.*expected a list"),
        ({"tool_calls": ["x"]}, "expected objects with name and result"),
        ({"tool_calls": [{"name": "x", "result": "y", "facts": [3, 1]}]}, "facts: expected two places"),
    ],
)
def test_faulty_extra_info_is_named(extra, expected):
    with pytest.raises(ValueError, match=expected):
        compute_score("", verdict(), TRUTH, extra)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"causes_weigth": 0.5}, "unknown setting 'causes_weigth'.*'causes_weight'"),
        ({"abstain_weight": 0.9}, "must stay above abstain_weight=0.9, or not to answer could earn more"),
        (
            {"abstain_weight": 0.1},
            "abstain_weight=0.1 must stay above invented_weight.*or a wrong answer could earn more",
        ),
        ({"invented_weight": 0.5}, "must stay above"),
        ({"causes_weight": 0.3}, "must stay above abstain_weight"),
        ({"reason_credit": 2}, "reason_credit: expected a number from 0.0 to 1.0"),
        ({"call_budget": 0}, "call_budget: expected"),
    ],
)
def test_settings_that_cannot_be(settings, expected):
    with pytest.raises(ValueError, match=expected):
        score(verdict(), **settings)
    assert read_investigation_settings({"reward_router_address": "x"}) == read_investigation_settings({})


def test_a_part_of_a_users_own_sees_the_whole_truth_and_the_transcript(monkeypatch):
    seen = []

    def severity(reading: Reading) -> float:
        seen.append(reading)
        return float(reading.verdict.given.get("severity") == reading.ground_truth["severity"])

    monkeypatch.setitem(PARTS, "severity_ok", RewardPart(severity, 0.05))
    truth = TRUTH | {"severity": "sev1", "team": "storage"}
    right, wrong = (score(verdict(severity=level), truth) for level in ("sev1", "sev3"))
    assert right["score"] - wrong["score"] == pytest.approx(0.05 / 1.0) and right["severity_ok"] == 1
    assert seen[0].ground_truth["team"] == "storage"
    assert [call.name for call in seen[0].transcript.calls] == ["list_services", "logs"]
    assert seen[0].transcript.turns[0] == "I look."
    # a part that pays can be earned by anyone, so it narrows the room between right, abstaining and wrong
    with pytest.raises(ValueError, match="and what parts pay"):
        score(verdict(), truth, severity_ok_weight=0.3)
    monkeypatch.setitem(PARTS, "causes", RewardPart(severity, 0.05))
    with pytest.raises(ValueError, match="reward part 'causes'"):
        score(verdict(), truth)


def test_reasons_for_refusal():
    assert parse_verdict(None).reason == "not_text"
    assert parse_verdict("x").reason == "no_object"
    assert parse_verdict("{x").reason == "not_json"
    assert parse_verdict('{"root_causes": 1}').reason == "kinds"
