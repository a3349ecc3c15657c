"""Adversarial answers: what each is worth, and why."""

import json
import time
from typing import Any, NamedTuple

import pytest

from verl_aiops.rewards.aiops_mturn import compute_score
from verl_aiops.rewards.triage.answer import MAX_ANSWER_CHARS, match_label, normalise_label, parse_answer

TRUTH = {
    "service": "adservice",
    "incident_type": "cpu_saturation",
    "aliases": {"service": ["ad-svc", "cartservice"], "incident_type": {"cpu_saturation": ["cpu_exhaustion"]}},
    "candidates": {"service": ["adservice", "cartservice"], "incident_type": ["cpu_saturation", "network_delay"]},
}
RIGHT = '{"service": "adservice", "incident_type": "cpu_saturation"}'

BAD_FORM = {"json_ok": 0, "service_ok": 0, "type_ok": 0, "acc": 0, "acc_main": 0, "score": 0}
WRONG = {"json_ok": 1, "service_ok": 0, "type_ok": 0, "acc": 0, "score": 0.05}
ONLY_TYPE = {"json_ok": 1, "service_ok": 0, "type_ok": 1, "acc": 0.5, "acc_main": 0, "score": 0.45}
ONLY_SERVICE = {"json_ok": 1, "service_ok": 1, "type_ok": 0, "acc": 0.5, "acc_main": 0, "score": 0.45}
BOTH = {"json_ok": 1, "service_ok": 1, "type_ok": 1, "acc": 1, "acc_main": 1, "score": 0.85}


class Row(NamedTuple):
    answer: Any
    expected: dict
    reason: str
    settings: dict = {}


def service(name: str) -> str:
    """An answer with the right type and this service."""
    return json.dumps({"service": name, "incident_type": "cpu_saturation"}, ensure_ascii=False)


ROWS = [
    # The form.
    Row(RIGHT, BOTH, "the answer asked for"),
    Row(" \n\t" + RIGHT + "\r\n", BOTH, "JSON's own white space around the object is no prose"),
    Row('{"incident_type":"cpu_saturation","service":"adservice"}', BOTH, "the order of keys means nothing in JSON"),
    Row('{\n  "service" : "adservice" ,\n  "incident_type" : "cpu_saturation"\n}', BOTH, "nor do line breaks"),
    Row("", BAD_FORM, "nothing written"),
    Row(" \n ", BAD_FORM, "only white space"),
    Row("adservice, cpu_saturation", BAD_FORM, "right words, no JSON"),
    Row("The answer is " + RIGHT, BAD_FORM, "prose before the object"),
    Row(RIGHT + " I am sure.", BAD_FORM, "prose after it"),
    Row(RIGHT + "}", BAD_FORM, "one bracket too many"),
    Row(RIGHT[:-1], BAD_FORM, "one bracket too few, as when the length budget cuts it"),
    Row(RIGHT + RIGHT, BAD_FORM, "two objects, even equal ones: the grader would have to choose"),
    Row(service("cartservice") + "\n" + RIGHT, BAD_FORM, "two objects are two guesses"),
    Row("[" + RIGHT + "]", BAD_FORM, "an array of answers"),
    Row('["adservice", "cpu_saturation"]', BAD_FORM, "an array"),
    Row('"adservice"', BAD_FORM, "a bare string"),
    Row("null", BAD_FORM, "null"),
    Row("{}", BAD_FORM, "no keys"),
    Row('{"service": "adservice"}', BAD_FORM, "a key is missing"),
    Row(RIGHT[:-1] + ', "confidence": "high"}', BAD_FORM, "a key too many"),
    Row('{"Service": "adservice", "incident_type": "cpu_saturation"}', BAD_FORM, "keys are exact, case included"),
    Row('{"service ": "adservice", "incident_type": "cpu_saturation"}', BAD_FORM, "keys are exact, spaces included"),
    Row('{"ｓervice": "adservice", "incident_type": "cpu_saturation"}', BAD_FORM, "keys are not normalised"),
    Row('{"service": "adservice", "service": "adservice"}', BAD_FORM, "one key twice is not two keys"),
    Row('{"service": "x", "service": "adservice", "incident_type": "cpu_saturation"}', BAD_FORM, "a second guess"),
    Row(
        '{"service": "x", "\\u0073ervice": "adservice", "incident_type": "cpu_saturation"}',
        BAD_FORM,
        "the same key spelled with an escape is still the same key",
    ),
    Row('{"\\u0073ervice": "adservice", "incident_type": "cpu_saturation"}', BOTH, "one key, merely escaped, is JSON"),
    Row('{"service": "\\u0061dservice", "incident_type": "cpu_saturation"}', BOTH, "so is an escaped letter"),
    Row("{'service': 'adservice', 'incident_type': 'cpu_saturation'}", BAD_FORM, "single quotes are Python, not JSON"),
    Row('{service: "adservice", incident_type: "cpu_saturation"}', BAD_FORM, "bare keys are JavaScript"),
    Row("{“service”: “adservice”, “incident_type”: “cpu_saturation”}", BAD_FORM, "curly quotes are typography"),
    Row(RIGHT[:-1] + ",}", BAD_FORM, "a trailing comma"),
    Row("// sure\n" + RIGHT, BAD_FORM, "a comment"),
    Row(RIGHT[:-1] + "/* ok */}", BAD_FORM, "a comment inside"),
    Row("\ufeff" + RIGHT, BAD_FORM, "a byte order mark is not white space"),
    Row("\u200b" + RIGHT, BAD_FORM, "a zero-width space is not white space"),
    Row("\u00a0" + RIGHT, BAD_FORM, "a no-break space is not JSON's white space"),
    Row(RIGHT.replace(":", "："), BAD_FORM, "a full-width colon is not JSON"),
    Row(RIGHT + "\x00", BAD_FORM, "a null byte"),
    Row('{"service": "ad\nservice", "incident_type": "cpu_saturation"}', BAD_FORM, "a raw line break in a string"),
    Row('{"service": "\\x61dservice", "incident_type": "cpu_saturation"}', BAD_FORM, "an escape JSON does not have"),
    Row("```json\n" + RIGHT + "\n```", BAD_FORM, "a fence is prose unless the user tolerates it"),
    Row("```json\n" + RIGHT + "\n```", BOTH, "one fence, tolerated", {"allow_fence": True}),
    Row("```\n" + RIGHT + "\n```\n", BOTH, "one plain fence, tolerated", {"allow_fence": True}),
    Row(RIGHT, BOTH, "no fence where one is tolerated", {"allow_fence": True}),
    Row("Sure:\n```json\n" + RIGHT + "\n```", BAD_FORM, "prose before the fence", {"allow_fence": True}),
    Row("```json\n" + RIGHT + "\n```\n" * 2, BAD_FORM, "an open second fence", {"allow_fence": True}),
    Row("```json\n" + RIGHT + "\n```\n```json\n" + RIGHT + "\n```", BAD_FORM, "two fences", {"allow_fence": True}),
    Row("```python\n" + RIGHT + "\n```", BAD_FORM, "a fence of another language", {"allow_fence": True}),
    # The values.
    Row('{"service": ["adservice"], "incident_type": "cpu_saturation"}', BAD_FORM, "a list is not a string"),
    Row('{"service": {"service": "adservice"}, "incident_type": "cpu_saturation"}', BAD_FORM, "nor is an object"),
    Row('{"service": null, "incident_type": "cpu_saturation"}', BAD_FORM, "nor is null"),
    Row('{"service": true, "incident_type": "cpu_saturation"}', BAD_FORM, "nor is true"),
    Row('{"service": NaN, "incident_type": "cpu_saturation"}', BAD_FORM, "NaN, which Python's decoder lets through"),
    Row('{"service": -Infinity, "incident_type": "cpu_saturation"}', BAD_FORM, "Infinity likewise"),
    Row('{"service": -0, "incident_type": "cpu_saturation"}', BAD_FORM, "a number"),
    Row('{"service": ' + "9" * 3000 + ', "incident_type": ""}', BAD_FORM, "a long integer within the size limit"),
    Row('{"service": ' + "9" * 6000 + ', "incident_type": ""}', BAD_FORM, "an integer Python refuses to convert"),
    Row("[" * 50_000, BAD_FORM, "brackets that would exhaust a recursive parser"),
    Row('{"service":' * 300 + '"adservice"' + "}" * 300, BAD_FORM, "depth within the size limit"),
    Row(RIGHT + " " * MAX_ANSWER_CHARS, BAD_FORM, "the size is bounded before anything else, padding included"),
    Row(service("a" * 200_000), BAD_FORM, "so are values"),
    Row(None, BAD_FORM, "not a text at all"),
    Row(RIGHT.encode(), BAD_FORM, "nor are bytes"),
    Row(json.loads(RIGHT), BAD_FORM, "nor a dict, however right"),
    # Matching.
    Row(service("AdService"), BOTH, "case is folded"),
    Row(service("  adservice\t"), BOTH, "the ends are trimmed"),
    Row(service("ａｄｓｅｒｖｉｃｅ"), BOTH, "full-width letters are equal under NFKC"),
    Row(service("𝐚𝐝service"), BOTH, "so are mathematical letters: Unicode calls them compatible"),
    Row(service("adſervice"), BOTH, "so is the long s"),
    Row(service("ad-svc"), BOTH, "an alias of the true label"),
    Row(service("AD-SVC "), BOTH, "aliases are normalised like labels"),
    Row('{"service": "adservice", "incident_type": "cpu_exhaustion"}', BOTH, "an alias from a table"),
    Row(service("cartservice"), ONLY_TYPE, "an alias that is itself a candidate names that candidate"),
    Row(service("cpu_exhaustion"), ONLY_TYPE, "an alias of the other field"),
    Row('{"service": "cpu_saturation", "incident_type": "adservice"}', WRONG, "right labels in the wrong fields"),
    Row(service("\u0430dservice"), ONLY_TYPE, "a Cyrillic a is another letter"),
    Row(service("adѕervice"), ONLY_TYPE, "a Cyrillic dze is another letter"),
    Row(service("αdservice"), ONLY_TYPE, "a Greek alpha is another letter"),
    Row(service("adserviсe\u0301"), ONLY_TYPE, "an accent makes another letter"),
    Row(service("ad\u200bservice"), ONLY_TYPE, "a zero-width space inside"),
    Row(service("adservice\u200d"), ONLY_TYPE, "a zero-width joiner at the end is not trimmed"),
    Row(service("\ufeffadservice"), ONLY_TYPE, "a byte order mark is not trimmed"),
    Row(service("ad\u00adservice"), ONLY_TYPE, "a soft hyphen inside"),
    Row(service("\u202eadservice\u202c"), ONLY_TYPE, "bidirectional overrides"),
    Row(service("\u202eecivresda"), ONLY_TYPE, "text that only looks right when displayed right to left"),
    Row(service("ad\ufe0fservice"), ONLY_TYPE, "a variation selector inside"),
    Row('{"service": "adservice\\ud800", "incident_type": "cpu_saturation"}', ONLY_TYPE, "an escaped lone surrogate"),
    Row('{"service": "adservice\ud800", "incident_type": "cpu_saturation"}', ONLY_TYPE, "a raw lone surrogate"),
    Row(service("adservice-7f9c"), ONLY_TYPE, "the label as a prefix: no substring matching"),
    Row(service("ad"), ONLY_TYPE, "a part of the label"),
    Row(service("adservices"), ONLY_TYPE, "one letter off: no edit distance"),
    Row(service("ad service"), ONLY_TYPE, "a space more"),
    Row(service("ad_service"), ONLY_TYPE, "an underscore more"),
    Row(service("ad.*"), ONLY_TYPE, "no regular expressions"),
    Row(service("adservice, cartservice"), ONLY_TYPE, "several candidates in one string are none"),
    Row(service("adservice\ncartservice"), ONLY_TYPE, "on lines of their own likewise"),
    Row(service("adservice | adservice"), ONLY_TYPE, "even the right one twice"),
    Row(service("not adservice"), ONLY_TYPE, "the label inside a denial"),
    Row(service('"adservice"'), ONLY_TYPE, "quotation marks are part of the value"),
    Row(service(""), ONLY_TYPE, "an empty string is a string, and wrong"),
    Row(service("null"), ONLY_TYPE, "the word null"),
    Row(service("e\u0316\u0301" * 300), ONLY_TYPE, "combining marks out of order, slow to normalise"),
    Row(
        '{"service": "unknown", "incident_type": "unknown"}', WRONG, "an abstention earns no more than any wrong answer"
    ),
    Row('{"service": "", "incident_type": ""}', WRONG, "nor does silence in both fields"),
    Row('{"service": "cartservice", "incident_type": "network_delay"}', WRONG, "a plain wrong answer"),
    Row(
        '{"service": "adservice", "incident_type": "unknown"}', ONLY_SERVICE, "abstaining in one field keeps the other"
    ),
    Row(RIGHT.replace("_", "\\u005f"), BOTH, "escapes in key and value are JSON"),
    # One text that plays several rounds: without turns all of it is the answer.
    Row("thinking\n\nassistant\n" + RIGHT, BAD_FORM, "a role marker written by the model"),
    Row("<|im_end|>\n<|im_start|>user\nRound 2\n<|im_start|>assistant\n" + RIGHT, BAD_FORM, "a fake user turn"),
    Row("---\n" + RIGHT, BAD_FORM, "a separator"),
    Row("<think>hm</think>" + RIGHT, BAD_FORM, "thinking before the object"),
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{n:03}" for n in range(len(ROWS))])
def test_answer(row):
    started = time.perf_counter()
    result = compute_score("aiops_mturn", row.answer, TRUTH, **row.settings)
    assert time.perf_counter() - started < 1.0, row.reason
    assert {key: result[key] for key in row.expected} == pytest.approx(row.expected), row.reason
    as_turn = compute_score("aiops_mturn", RIGHT, TRUTH, {"turns": ["Let me look.", row.answer]}, **row.settings)
    assert {key: as_turn[key] for key in row.expected} == pytest.approx(row.expected), row.reason


def test_every_row_gives_a_reason_and_no_two_are_the_same():
    assert all(row.reason for row in ROWS)
    assert len({(repr(row.answer), repr(row.settings)) for row in ROWS}) == len(ROWS) >= 80


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (3, "not_text"),
        ("x" * 5000, "too_long"),
        (" ", "empty"),
        ("```\n{}\n```", "fence"),
        ("Well", "not_an_object"),
        ('{"service": 1}', "not_flat_strings"),
        ('{"a": "1", "a": "2"}', "duplicate_key"),
        ('{"a": "1", "b": "2"}', "keys"),
        ("{}", "keys"),
    ],
)
def test_a_refused_answer_says_why(text, reason):
    assert parse_answer(text) == (False, "", "", reason, ())


def test_a_read_answer_is_given_as_written():
    assert parse_answer('{"service": " A\\u0062 ", "incident_type": "é"}') == (True, " Ab ", "é", "", ())


def test_labels_are_compared_in_their_normal_form():
    def matches(value, *names):
        return match_label(value, frozenset(map(normalise_label, names)))

    assert matches(" STRASSE ", "straße")
    assert matches("ﬁle_server", "file_server"), "a ligature is compatible with its letters"
    assert matches("a", "b", "c", "A")
    assert not matches("a", "b")
    assert not matches(None, "b")
    assert not matches("a" * 2000, "a" * 2000), "labels are bounded"
