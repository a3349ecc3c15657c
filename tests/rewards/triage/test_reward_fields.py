"""Fields of the answer beyond service and incident type: what they earn, and what they cannot."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.rewards.aiops_mturn import compute_score
from verl_aiops.rewards.triage.answer import parse_answer
from verl_aiops.rewards.triage.ground_truth import read_ground_truth, unoffered_fields

LINE = "db: no space left on /var/lib"
FIELDS = ["service", "incident_type", "severity", "team"]
TRUTH = {
    "service": "db",
    "incident_type": "disk_full",
    "severity": "High",
    "team": "storage",
    "fields": FIELDS,
    "evidence": [LINE],
    "aliases": {"service": ["pg"], "team": ["storage-sre"]},
    "candidates": {"service": ["db", "api"], "severity": ["High", "low"], "team": ["storage", "web"]},
}
RIGHT = {"service": "db", "incident_type": "disk_full", "severity": "high", "team": "storage-sre"}


def score(answer, truth=TRUTH, early=f'"{LINE}"', **kwargs):
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return compute_score("", "", truth, {"turns": [early, text], "incident_text": LINE}, **kwargs)


def test_all_fields_right_is_a_perfect_answer():
    result = score(RIGHT)
    assert result["score"] == 1 and result["acc_all"] == result["fields_ok"] == 1 and result["fields_known"] == 4
    assert result["acc"] == result["acc_main"] == 1


def test_the_two_keep_their_meaning_beside_others():
    result = score({**RIGHT, "severity": "low"})
    assert (result["acc_main"], result["acc"], result["evidence"]) == (1, 1, 1)
    assert (result["acc_all"], result["fields_ok"]) == (0, 0.75)
    assert result["score"] == pytest.approx((0.05 + 3 * 0.4 + 0.15) / (0.05 + 4 * 0.4 + 0.15))
    result = score({**RIGHT, "service": "api"})
    assert (result["acc_main"], result["acc"], result["acc_all"], result["evidence"]) == (0, 0.5, 0, 0)


@pytest.mark.parametrize("key", ["acc_all", "fields_ok", "fields_known"])
def test_where_nothing_more_is_asked_for_the_keys_are_there_too(key):
    two = {name: TRUTH[name] for name in ("service", "incident_type")}
    right, half = score({**two, "service": "DB"}, two), score({**two, "service": "api"}, two)
    assert (right[key], half[key]) == {"acc_all": (1, 0), "fields_ok": (1, 0.5), "fields_known": (2, 2)}[key]


def test_a_field_that_the_row_does_not_know_is_asked_for_and_not_paid():
    truth = {**TRUTH, "team": None}
    one, other = score({**RIGHT, "team": "a"}, truth), score({**RIGHT, "team": "b"}, truth)
    assert one == {**other, "chars": one["chars"]} and one["score"] == 1
    assert (one["fields_known"], one["acc_all"]) == (3, 1)
    del truth["team"]
    assert score({**RIGHT, "team": "a"}, truth) == one


@pytest.mark.parametrize(
    "answer",
    [
        {name: RIGHT[name] for name in FIELDS[:2]},
        {name: RIGHT[name] for name in FIELDS[:3]},
        {**RIGHT, "confidence": "high"},
        {**RIGHT, "severity": 1},
        {**RIGHT, "severity": ["high"]},
        {**RIGHT, "severity": None},
        json.dumps(RIGHT)[:-1] + ', "severity": "High"}',
        json.dumps(RIGHT)[:-1] + ', "\\u0073everity": "High"}',
        "service: db\nincident_type: disk_full\nseverity: high\nteam: storage",
    ],
)
def test_anything_but_the_fields_asked_for_is_no_answer(answer):
    result = score(answer)
    assert result["json_ok"] == result["score"] == result["acc_all"] == result["fields_ok"] == 0


def test_no_further_field_may_be_given_where_none_is_asked_for():
    two = {name: TRUTH[name] for name in ("service", "incident_type")}
    assert score(RIGHT, two)["json_ok"] == 0


@pytest.mark.parametrize(
    "label", ["High, low", "high|low", "", " ", "*", "h\u0456gh", "hi\u200bgh", "\ud800", "High" * 1000]
)
def test_a_hostile_label_earns_nothing(label):
    assert score({**RIGHT, "severity": label})["fields_ok"] <= 0.75
    assert score({**RIGHT, "severity": label})["score"] <= score({**RIGHT, "severity": "low"})["score"]


def test_one_more_right_field_earns_more_than_anything_else():
    """The worst of an answer with n + 1 right fields beside the best of one with n."""
    wrong = dict.fromkeys(FIELDS, "nothing of this")
    truth = {**TRUTH, "evidence": [LINE]}
    invented = '"not in it 1" "not in it 2" "not in it 3" "not in it 4" root cause: x' * 99
    worst, best = {}, {}
    for count in range(5):
        for chosen in itertools.combinations(FIELDS, count):
            answer = {**wrong, **{name: RIGHT[name] for name in chosen}}
            badly = score(answer, truth, early=invented)
            worst[count] = min(worst.get(count, 2), badly["score"])
            best[count] = max(best.get(count, -1), score(answer, truth)["score"])
    assert all(worst[count + 1] > best[count] for count in range(4)), (worst, best)


def test_the_weight_of_a_further_field():
    answer = {**RIGHT, "severity": "low"}
    paid = (0.05 + 0.8 + 1.0 + 0.15) / (0.05 + 0.8 + 2.0 + 0.15)
    assert score(answer, field_weight=1.0)["score"] == pytest.approx(paid)
    # null: as much as the smaller of the two, which rise together here
    heavy = score(answer, service_weight=0.9, type_weight=0.8)["score"]
    assert heavy == pytest.approx((0.05 + 1.7 + 0.8 + 0.15) / (0.05 + 1.7 + 1.6 + 0.15))
    assert score(answer, field_weight=None) == score(answer)
    with pytest.raises(ValueError, match="below the smallest of service_weight, type_weight and field_weight .0.3"):
        score(answer, field_weight=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": ["service", "severity"]}, "fields: expected service, incident_type and others, each once"),
        ({"fields": [*FIELDS, "team"]}, "each once"),
        ({"fields": [*FIELDS, "Sev"]}, "names of small letters, digits and underscores"),
        ({"fields": [*FIELDS, "evidence"]}, "that mean nothing else here, got 'evidence'"),
        ({"fields": "severity"}, "fields: expected a list of str"),
        ({"severity": 3}, "severity: expected a non-empty str, got 3"),
        ({"severity": " "}, "severity: expected a non-empty str"),
    ],
)
def test_faults_of_the_row_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        score(RIGHT, {**TRUTH, **change})


def test_what_a_row_says_of_its_fields():
    truth = read_ground_truth(json.dumps(TRUTH))
    assert truth.fields == tuple(FIELDS)
    assert dict(truth.more) == {"severity": {"high"}, "team": {"storage", "storage-sre"}}
    assert truth == read_ground_truth(TRUTH) and "web" in truth.names
    # one table of aliases without field names is of the two alone
    assert dict(read_ground_truth({**TRUTH, "aliases": {"storage": ["nas"]}}).more)["team"] == {"storage"}
    assert unoffered_fields({**TRUTH, "team": "network"}) == ["team"]
    assert unoffered_fields({**TRUTH, "team": None}) == []


@given(st.lists(st.tuples(st.sampled_from([*FIELDS, "x"]), st.text(max_size=9)), max_size=6), st.text(max_size=60))
@settings(max_examples=200, deadline=2000)
def test_any_answer_has_the_same_finite_keys(pairs, text):
    keys = set(score(RIGHT))
    for answer in (dict(pairs), text, "{" + ", ".join(f"{json.dumps(a)}: {json.dumps(b)}" for a, b in pairs) + "}"):
        result = score(answer)
        assert set(result) == keys and all(type(value) is float and math.isfinite(value) for value in result.values())
        assert 0 <= result["score"] <= 1 and result["acc_all"] <= result["acc_main"]


def test_an_answer_is_read_in_any_order():
    answer = parse_answer(json.dumps(dict(reversed(RIGHT.items()))), fields=tuple(FIELDS))
    assert answer.ok and answer.fields == RIGHT and list(answer.fields) == FIELDS
