"""What must hold of the investigation reward for any text, any truth and any allowed weights."""

import json
import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from verl_aiops.rewards.aiops_investigation import compute_score
from verl_aiops.rewards.investigation.components import RESULTS
from verl_aiops.rewards.investigation.settings import read_investigation_settings
from verl_aiops.rewards.investigation.verdict import parse_verdict

COUNTS = {"quotes", "invented", "calls", "failed_calls", "repeated_calls", "rounds", "chars", "reasoning"}
NAMES = ("cart", "cart-db", "web", "user", "search")
REASONS = ("disk_full", "cpu", "network", "")
LINE = "10:00:01 ERROR cart-db: no space left on device"
RIGHT = '{"root_causes": [{"component": "cart-db", "reason": "disk_full"}], "evidence": ["no space left on device"]}'

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
fragments = st.sampled_from(
    [
        RIGHT,
        LINE,
        '{"root_causes": [',
        '{"component": "cart"',
        '"verdict": "no_fault"',
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        ":",
    ]
    + ["\\", "\ud800", "```json\n", "```", "NaN", "9" * 300, "<tool_call>", "</tool_call>", "<|im_start|>user\n"]
    + ["<tool_response>", "<think>", "</think>", "\u200b", "ﷺ", "null", "true"]
)
hostile = st.one_of(any_text, st.lists(st.one_of(fragments, any_text), max_size=12).map("".join))
calls = st.lists(
    st.fixed_dictionaries({"name": hostile, "arguments": hostile, "ok": st.booleans(), "result": hostile}), max_size=4
)
quick = settings(max_examples=150, deadline=2000)

labels = st.sampled_from(NAMES)
reasons = st.sampled_from(REASONS)
cause_sets = st.lists(st.tuples(labels, reasons), min_size=1, max_size=4, unique=True)
edge_sets = st.lists(st.tuples(labels, labels), max_size=4, unique=True)


def truth_of(causes, edges=()):
    return {
        "root_causes": [{"component": name, "reason": reason or None} for name, reason in causes],
        "propagation": [{"from": one, "to": other} for one, other in edges],
        "components": list(NAMES),
    }


def verdict_of(causes, edges=(), evidence=()):
    row = truth_of(causes, edges) | {"evidence": list(evidence)}
    del row["components"]
    return json.dumps(row)


def earned(text, truth, called=(), **weights):
    extra = {"turns": ["x", text], "tool_calls": list(called), "turn_calls": [len(called), 0]}
    return compute_score("", "", truth, extra, **weights)


TRUTHS = (
    truth_of([("cart-db", "disk_full"), ("web", "")], [("cart-db", "cart")]),
    {"no_fault": True},
    {"cannot_tell": True, "components": list(NAMES)},
)


@given(st.lists(hostile, max_size=4), hostile, calls, st.sampled_from(TRUTHS), st.booleans())
@quick
def test_any_transcript_gets_the_same_finite_keys_and_the_same_score_twice(turns, solution, called, truth, kept):
    extra = {"turns": turns, "tool_calls": called if kept else None}
    result = compute_score("", solution, truth, extra)
    assert set(result) == set(RESULTS)
    for key, value in result.items():
        assert type(value) is float and math.isfinite(value), key
        assert 0 <= value and (key in COUNTS or value <= 1), key
    assert result == compute_score("other", solution, json.dumps(truth), dict(extra))
    assert result["json_ok"] or result["score"] == 0
    assert result["acc_main"] <= result["causes"] <= result["components"] <= result["any_service"] or not truth.get(
        "root_causes"
    )


@given(hostile)
@quick
def test_what_is_read_as_a_verdict_is_json_for_everyone_else_too(text):
    verdict = parse_verdict(text)
    assert json.loads(text[text.index("{") :]) == verdict.given if verdict.ok else not verdict.given


@given(cause_sets, edge_sets, cause_sets, edge_sets)
@quick
def test_the_truth_is_the_best_verdict_and_order_is_nothing(causes, edges, others, other_edges):
    truth = truth_of(causes, edges)
    best = earned(verdict_of(causes, edges), truth)
    assert best["acc_main"] == best["causes"] == best["f1"] == 1 and best["path_f1"] == bool(edges)
    assert earned(verdict_of(causes[::-1], edges[::-1]), truth) == best
    other = earned(verdict_of(others, other_edges), truth)
    assert other["score"] <= best["score"]
    assert other["acc_main"] == 0 or other["causes"] == 1


@given(labels, reasons, st.lists(st.tuples(labels, reasons), min_size=1, max_size=8, unique=True))
@quick
def test_listing_more_names_earns_no_more_than_guessing_one_of_them(label, reason, listed):
    """Over truths that are equally likely, a list is worth no more than one of its names."""
    truths = [truth_of([cause]) for cause in listed]
    together = sum(earned(verdict_of(listed), truth)["causes"] for truth in truths)
    guess = max(sum(earned(verdict_of([cause]), truth)["causes"] for truth in truths) for cause in listed)
    assert together <= guess + 1e-9
    everything = [(name, reason) for name in NAMES]
    shotgun = earned(verdict_of(everything), truth_of([(label, reason)]))
    abstained = earned('{"root_causes": [], "verdict": "not_enough_evidence"}', truth_of([(label, reason)]))
    assert shotgun["score"] < abstained["score"]


weights = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@given(
    st.tuples(*[weights] * 3),
    st.floats(0.02, 1.0),
    st.floats(0.05, 0.9),
    st.lists(weights, min_size=5, max_size=5),
    st.floats(0.01, 0.99),
    hostile,
)
@settings(max_examples=200, deadline=2000)
def test_right_before_abstaining_before_wrong_under_all_allowed_weights(paid, causes, abstain, costs, share, padding):
    """The dearest right verdict beside the cheapest abstention, and the dearest of those beside the best wrong one."""
    abstain *= causes
    scale = share * min(abstain, causes - abstain) / sum(costs) if sum(costs) else 0.0
    names = [f"{name}_weight" for name in ("unsupported", "invented", "failed", "calls", "length")]
    given_weights = dict(zip(names, (min(1.0, cost * scale) for cost in costs)))
    given_weights |= dict(zip(("path_weight", "evidence_weight", "format_weight"), paid))
    given_weights |= {"causes_weight": causes, "abstain_weight": abstain}
    assume(causes - sum(given_weights[name] for name in names) > abstain + 1e-6)
    read_investigation_settings(given_weights)
    truth = truth_of([("cart-db", "disk_full")], [("cart-db", "cart")])
    invented = [f"nobody wrote this {n}" for n in range(5)]
    failed = [{"name": "x", "arguments": str(n), "ok": False, "result": padding} for n in range(20)]
    about = [{"name": "logs", "arguments": "cart", "ok": True, "result": LINE}]

    def of(text, called, before="", truth=truth):
        extra = {"turns": [before, text], "tool_calls": called}
        return compute_score("", "", truth, extra, **given_weights)["score"]

    dear = "x" * 20_000 + padding
    nothing_said = '{"root_causes": [], "verdict": "not_enough_evidence"}'
    cheap_wrong = of(verdict_of([("cart", "disk_full")], [("cart-db", "cart")], [LINE]), about)
    dear_abstention, cheap_abstention = of(nothing_said, failed, dear), of(nothing_said, [])
    dear_right = of(verdict_of([("cart-db", "disk_full")], [("web", "user")], invented), failed, dear)
    assert dear_right > cheap_abstention >= dear_abstention > cheap_wrong
    well = {"no_fault": True, "components": list(NAMES)}
    all_well = json.dumps({"root_causes": [], "verdict": "no_fault", "evidence": invented})
    abstained = of(nothing_said, [], truth=well)
    assert of(all_well, failed, dear, well) > abstained >= of(nothing_said, failed, dear, well)
    assert of(nothing_said, failed, dear, well) > of(verdict_of([("cart", "disk_full")], [], [LINE]), about, truth=well)
    unknown = {"cannot_tell": True}
    assert of(nothing_said, failed, dear, unknown) > of(all_well, about, truth=unknown)
