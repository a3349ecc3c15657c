"""What must hold of the reward for any text, any label and any allowed weights."""

import json
import math
import time
import unicodedata

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from verl_aiops.rewards.aiops_mturn import compute_score
from verl_aiops.rewards.triage import quotes
from verl_aiops.rewards.triage.answer import normalise_label, parse_answer
from verl_aiops.rewards.triage.early_verdict import gives_verdict

KEYS = frozenset(compute_score("", "", {"service": "a", "incident_type": "b"}))
CONTRACT = {"score", "acc", "acc_main", "json_ok", "service_ok", "type_ok", "evidence"}
COUNTS = {"quotes", "invented", "rounds", "chars", "fields_known"}

LINES = [
    f"10:00:0{n} {text}" for n, text in enumerate(["db replica lag 3 s", "api call failed", "cache warm", "web ok"])
]
INCIDENT = "\n".join(LINES)
TRUTH = {"service": "db", "incident_type": "replication_lag", "evidence": LINES[:2]}

# Lone surrogates included: a tokenizer's decoder should not make them, but texts also come from files.
any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=80)
fragments = st.sampled_from(
    [
        *LINES,
        INCIDENT,
        '"',
        "“",
        "”",
        "「",
        "」",
        "`",
        "```",
        "\n",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\\",
        "\\u0073",
        "\ud800",
    ]
    + [
        '"service"',
        '"incident_type"',
        '"db"',
        '"replication_lag"',
        "service: ",
        "root cause is ",
        "根因是",
        "\u200b",
        "ﷺ",
    ]
    + ['{"service": "db", "incident_type": "replication_lag"}', "NaN", "9" * 300, "e\u0316\u0301", "<|im_start|>user"]
)
hostile = st.one_of(any_text, st.lists(st.one_of(fragments, any_text), max_size=12).map("".join))
turns = st.lists(hostile, max_size=4)
quick = settings(max_examples=200, deadline=2000)


@given(turns, hostile, st.booleans())
@quick
def test_any_text_gets_the_same_finite_keys_and_the_same_score_twice(texts, solution, with_incident):
    extra = {"turns": texts, "incident_text": INCIDENT if with_incident else None}
    result = compute_score("aiops_mturn", solution, TRUTH, extra)
    assert set(result) == KEYS >= CONTRACT
    for key, value in result.items():
        assert type(value) is float and math.isfinite(value), key
        assert 0 <= value and (key in COUNTS or value <= 1), key
    assert result == compute_score("other", solution, json.dumps(TRUTH), dict(extra))
    assert result["acc"] == (result["service_ok"] + result["type_ok"]) / 2
    assert result["acc_main"] == result["service_ok"] * result["type_ok"]
    assert result["json_ok"] or result["score"] == 0
    assert result["acc_main"] or result["evidence"] == 0


def spelt(labels, turned, plain, space, around):
    """An answer as some model might write it, most of them acceptable."""
    fields = dict(zip(("service", "incident_type"), labels))
    fields = dict(reversed(fields.items())) if turned else fields
    return around + json.dumps(fields, ensure_ascii=plain, separators=("," + space, space + ":")) + around


@given(
    st.builds(
        spelt,
        st.lists(st.text(min_size=1, max_size=30), min_size=2, max_size=2),
        *(st.booleans(), st.booleans()),
        st.sampled_from(["", " ", "\n\t"]),
        st.sampled_from(["", "", " ", "\r\n", "\u2028", "x", "\ufeff"]),
    )
)
@quick
def test_an_accepted_answer_is_json_for_everyone_else_too(text):
    answer = parse_answer(text)
    assume(answer.ok)
    assert json.loads(text) == {"service": answer.service, "incident_type": answer.incident_type}


weights = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@given(
    st.tuples(weights, weights).filter(lambda pair: min(pair) >= 0.05),
    st.lists(weights, min_size=5, max_size=5),
    st.floats(0.01, 0.99),
    hostile,
    hostile,
)
@quick
def test_one_more_right_field_always_earns_more(fields, extras, share, best, worst):
    """The best first round one can write beside a worse answer, against the worst beside a better one."""
    scale = share * min(fields) / sum(extras) if sum(extras) else 0.0
    names = ("format_weight", "evidence_weight", "early_verdict_weight", "invented_weight", "length_weight")
    given_weights = dict(zip(names, (min(1.0, extra * scale) for extra in extras)))
    given_weights |= {"service_weight": fields[0], "type_weight": fields[1]}

    def score(early, service, kind):
        answer = json.dumps({"service": service, "incident_type": kind})
        extra = {"turns": [early, answer], "incident_text": INCIDENT}
        return compute_score("", "", TRUTH, extra, **given_weights)["score"]

    good = [best, " ".join(f'"{line}"' for line in LINES[:2])]
    bad = [worst, '{"a": 1}' + " ".join(f'"never written {n}"' for n in range(5)) + "x" * 8000]
    for high, low in (
        (("db", "replication_lag"), ("db", "?")),
        (("db", "?"), ("?", "?")),
        (("?", "replication_lag"), "??"),
    ):
        assert min(score(text, *high) for text in bad) > max(score(text, *low) for text in good)
    assert score(good[1], "db", "replication_lag") == pytest.approx(1.0)


labels = st.text(min_size=1, max_size=20).filter(lambda text: normalise_label(text))


@given(st.lists(labels, min_size=5, max_size=5, unique_by=normalise_label), st.sampled_from(range(6)))
@quick
def test_renaming_every_label_changes_no_score(names, which):
    """Any script, any punctuation: labels are compared, never understood."""

    def score(service, other, kind, another, alias):
        truth = {
            "service": service,
            "incident_type": kind,
            "evidence": [LINES[0]],
            "aliases": {"service": {service: [alias]}},
            "candidates": {"service": [service, other], "incident_type": [kind, another]},
        }
        answer = [(service, kind), (other, kind), (service, another), (other, another), (alias, kind), (kind, service)]
        values = dict(zip(("service", "incident_type"), answer[which]))
        text = json.dumps(values, ensure_ascii=which % 2 == 0)
        # In the usual length, so that the length of the names does not count.
        extra = {"turns": [f'"{LINES[0]}"\n', text], "incident_text": INCIDENT}
        result = compute_score("", "", truth, extra)
        return {key: value for key, value in result.items() if key != "chars"}

    assert score(*names) == score("adservice", "cartservice", "cpu_saturation", "network_delay", "ad-svc")


words = st.text(st.characters(categories=("Lu", "Ll", "Lt", "Lm", "Lo", "Nd")), min_size=1, max_size=12)


@given(st.lists(words, min_size=4, max_size=4, unique_by=normalise_label), st.booleans())
@quick
def test_renaming_in_the_incident_as_well_changes_no_score(names, quote_both):
    """Lines get longer or shorter, in other scripts; quotations are worth the same."""

    def score(service, other, kind, another):
        lines = [
            f"10:00:01 {service} refused 12 calls",
            f"10:00:02 {other} took 31 ms",
            f"10:00:03 {other} is up again",
        ]
        truth = {"service": service, "incident_type": kind, "evidence": lines[:1]}
        truth["candidates"] = {"service": [service, other], "incident_type": [kind, another]}
        early = f'I see "{lines[0]}" and {other} beside `{service}`.' + f' Then "{lines[1]}".' * quote_both
        answer = json.dumps({"service": service, "incident_type": kind})
        result = compute_score("", "", truth, {"turns": [early, answer], "incident_text": "\n".join(lines)})
        return {key: value for key, value in result.items() if key != "chars"}

    assume(not any(gives_verdict(name) for name in names))
    assert score(*names) == score("adservice", "cartservice", "cpu_saturation", "network_delay")


invisible = st.sampled_from(
    "\u200b\u200c\u200d\u2060\ufeff\u202a\u202b\u202d\u202e\u2066\u2067\u2069\u200e\u200f\u061c\u00ad"
)


@given(invisible, st.integers(0, 15), st.sampled_from(["service", "incident_type"]))
@quick
def test_an_invisible_character_anywhere_never_pays(character, position, field):
    answer = {"service": "db", "incident_type": "replication_lag"}
    spoiled = answer | {field: answer[field][:position] + character + answer[field][position:]}
    key = "service_ok" if field == "service" else "type_ok"
    assert compute_score("", json.dumps(spoiled), TRUTH)[key] == 0
    raw = json.dumps(answer)
    anywhere = raw[: 2 * position] + character + raw[2 * position :]
    assert compute_score("", anywhere, TRUTH)["acc_main"] == 0


@given(st.text(max_size=6))
def test_normalising_a_label_twice_changes_nothing(text):
    once = normalise_label(text)
    assert normalise_label(once) == once
    assert normalise_label(unicodedata.normalize("NFD", text)) == once


quote_soup = st.lists(
    st.sampled_from([*LINES, LINES[0][:-3], "never written", "db", " ", "\n", "x", ". ", '"', '"', '"', "“", "”", "`"])
)


@example(f'x"{LINES[0]}"', False)
@example(f'"{LINES[0]}"x', False)
@example(f'"{LINES[0]}" and "{LINES[0]}" and "db"', False)
@given(quote_soup.map("".join), st.booleans())
@quick
def test_the_short_way_to_quotations_finds_what_the_long_way_finds(text, in_pairs):
    if in_pairs:
        text = "".join(f' "{line}"' for line in LINES) + text
    short = quotes._plain_quotations(text, INCIDENT, 8, frozenset({"db"}))
    assert short in (None, quotes._any_quotations(text, INCIDENT, 8, frozenset({"db"})))


@given(st.integers(0, len(LINES[0]) - 1), st.characters(exclude_characters='"`\n', exclude_categories=("Cs",)))
@quick
def test_one_altered_character_in_a_quotation_costs(position, character):
    line = LINES[0]
    assume(character != line[position])
    altered = line[:position] + character + line[position + 1 :]
    # At the ends a character may turn into white space, which leaves a shorter verbatim quotation.
    assume(altered.strip() not in INCIDENT)
    answer = '{"service": "db", "incident_type": "replication_lag"}'

    def score(first):
        extra = {"turns": [f'"{first}" and "{LINES[1]}"', answer], "incident_text": INCIDENT}
        return compute_score("", "", TRUTH, extra)

    assert score(altered)["invented"] == 1
    assert score(altered)["score"] < score(LINES[1])["score"] < score(line)["score"] == 1.0


UNITS = [
    "a",
    '"',
    '"a',
    "「",
    "`",
    "``a",
    "{",
    '{"',
    '["',
    "[ ",
    "\n",
    "\\",
    '\\"',
    "ﷺ",
    "\u0301\u0316",
    "\ud800",
    "<service>",
]
UNITS += ["service", " service:", "root cause is ", "根因", '"10:00:0', f'"{LINES[0]}', "```\n", "aaaaaaaab"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("incident", [INCIDENT, "a" * 200_000, '"a\n' * 70_000], ids=["usual", "letters", "marks"])
def test_no_text_takes_a_second(unit, incident):
    answer = '{"service": "' + unit
    for size in (32_700, 200_000):
        text = (unit * size)[:size]
        started = time.perf_counter()
        compute_score(
            "", "", TRUTH | {"evidence": ["aaaaaaaab" * 9]}, {"turns": [text, text], "incident_text": incident}
        )
        assert time.perf_counter() - started < 1.0
    started = time.perf_counter()
    compute_score("", answer + text[: 4096 - len(answer)], TRUTH, allow_fence=True)
    compute_score("", "```\n" + text[:4092], TRUTH, allow_fence=True)
    assert time.perf_counter() - started < 1.0


noise = st.text(st.sampled_from(" \t\n\r*_~`\"'“”«»「」|#-—.,;/\u200b\u2060\u00a0"), max_size=6)
ANNOUNCEMENTS = [("root", "cause"), ("final", "answer"), ("incident", "type"), ("underlying", "cause"), ("verdict",)]
ANNOUNCEMENTS += [("faulty", "service"), ("culprit",), ("根本", "原因"), ("故障", "类型"), ("结论",)]


@given(
    st.sampled_from(ANNOUNCEMENTS),
    noise,
    noise,
    noise.map(lambda text: text.replace("/", "")),
    st.sampled_from([":", "=", "：", "＝"]),
    st.booleans(),
)
@quick
def test_no_noise_between_the_words_of_an_announcement_hides_it(words, first, before, after, colon, quoting):
    between = f' "{LINES[0]}" ' if quoting else " "
    text = f"Hm. {(between + first).join(words)}{before}{colon}{after} db"
    extra = {"turns": [text, "{}"], "incident_text": INCIDENT}
    assert compute_score("", "", TRUTH, extra)["early_verdict"] == 1


@given(st.sampled_from(LINES), st.data())
@quick
def test_no_altered_quotation_pays(line, data):
    """White space that became another, letters that were changed, pieces put together: none is what the data say."""
    at = data.draw(st.sampled_from([at for at, letter in enumerate(line) if letter == " "]))
    gap = data.draw(st.sampled_from(["\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2028", "\v", " \n", "\n "]))
    mark = data.draw(st.sampled_from(['"{}"', "`{}`", "```\n{}\n```", "“{}”", "「{}」"]))
    altered = mark.format(line[:at] + gap + line[at + 1 :])
    extra = {"turns": [altered, '{"service": "db", "incident_type": "replication_lag"}'], "incident_text": INCIDENT}
    result = compute_score("", "", TRUTH, extra)
    assert result["quotes"] == result["evidence"] == 0.0
