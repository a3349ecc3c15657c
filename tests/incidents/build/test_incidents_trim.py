"""Trimming: within the budget, around the evidence, with nothing lost unsaid."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.incidents import Incident, IncidentError, Simulator, incident_text, neutralise_incident, trim_incident
from verl_aiops.incidents.build.salience import by_salience

LINES = tuple(f"{number:02d} line of log with some words" for number in range(40))


def make(logs=LINES, trace=None, evidence=(), **changes):
    return Incident("x", "s", "db", "oom", "Slow.", tuple(logs), trace, evidence=tuple(evidence), **changes)


def test_short_incidents_are_left_alone():
    incident = make(LINES[:3])
    assert trim_incident(incident, 10_000).incident is incident


def test_keeps_the_evidence_and_its_neighbours():
    trimmed = trim_incident(make(evidence=[LINES[20]]), 300)
    logs = trimmed.incident.logs
    numbers = [int(line[:2]) for line in logs if line[0].isdigit()]
    assert 20 in numbers and numbers == list(range(numbers[0], numbers[-1] + 1))
    assert logs[0] == f"… {numbers[0]} lines left out"
    assert logs[-1] == f"… {39 - numbers[-1]} lines left out"
    assert trimmed.lines_left_out == 40 - len(numbers)
    assert trimmed.incident.evidence == (LINES[20],)
    assert len(incident_text(trimmed.incident)) <= 300


def test_marker_speaks_the_language_and_covers_the_trace():
    trace = "\n".join(f"span {number}" for number in range(30))
    trimmed = trim_incident(make(trace=trace, evidence=["span 5"], lang="zh"), 200)
    assert re.fullmatch(r"… 略去 \d+ 行", trimmed.incident.logs[0])
    assert "span 5" in trimmed.incident.trace_lines
    assert re.search(r"… 略去 \d+ 行", trimmed.incident.trace)


def test_evidence_beyond_the_budget_is_dropped_in_order_and_counted():
    trimmed = trim_incident(make(evidence=LINES[::8]), 150)
    kept = trimmed.incident.evidence
    assert 1 <= len(kept) < 5 and kept == LINES[::8][: len(kept)]
    assert trimmed.evidence_left_out == 5 - len(kept)
    assert trimmed.evidence_shortened == 0


def test_one_endless_evidence_line_is_cut_to_a_verbatim_prefix():
    line = "db says " + "very " * 400
    incident = make((*LINES, line), evidence=[line, LINES[3]])
    trimmed = trim_incident(incident, 200)
    (prefix,) = trimmed.incident.evidence
    assert line.startswith(prefix) and 60 < len(prefix) < 200
    assert (trimmed.evidence_left_out, trimmed.evidence_shortened) == (1, 1)
    assert prefix in incident_text(trimmed.incident)


def test_stack_traces_are_cut_by_line():
    entry = "\n".join(f"  at frame {number}" for number in range(60))
    trimmed = trim_incident(make(("before", entry, "after"), evidence=["at frame 30\n  at frame 31"]), 200)
    assert trimmed.incident.evidence == ("at frame 30\n  at frame 31",)


def test_without_evidence_the_beginnings_stay():
    trimmed = trim_incident(make(trace="\n".join(f"span {number}" for number in range(30))), 300)
    assert trimmed.incident.logs[0] == LINES[0] and trimmed.incident.trace_lines[0] == "span 0"


def test_a_rambling_symptom_gives_way():
    trimmed = trim_incident(replace(make(evidence=[LINES[0]]), symptom="word " * 300), 200)
    assert trimmed.incident.evidence == (LINES[0],)
    assert trimmed.incident.symptom.endswith("…")


def test_budget_in_another_unit():
    incident = make(evidence=[LINES[20]])

    def words(text: str) -> int:
        return len(text.split())

    trimmed = trim_incident(incident, 40, measure=words)
    assert 25 < words(incident_text(trimmed.incident)) <= 40


def test_no_room_at_all():
    with pytest.raises(
        IncidentError, match=r"incident 'x': a budget of 20 leaves no room for its data; give at least \d+"
    ):
        trim_incident(make(evidence=[LINES[0]]), 20)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    budget=st.integers(260, 3000),
    lang=st.sampled_from(["en", "zh"]),
    difficulty=st.sampled_from(["easy", "hard"]),
)
def test_never_loses_the_evidence(seed, budget, lang, difficulty):
    incident = Simulator(seed=seed, lang=lang, difficulty=difficulty).incident(0)
    trimmed = trim_incident(incident, budget)
    text = incident_text(trimmed.incident)
    assert len(text) <= budget
    assert trimmed.incident.evidence and all(item in text for item in trimmed.incident.evidence)
    assert len(trimmed.incident.evidence) + trimmed.evidence_left_out == len(incident.evidence)
    if sum(len(item) + 1 for item in incident.evidence) + len(incident.symptom) + 200 < budget:
        assert trimmed.incident.evidence == incident.evidence
    assert trim_incident(trimmed.incident, budget).incident == trimmed.incident


# --- blind ------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.integers(260, 1500), lang=st.sampled_from(["en", "zh"]))
def test_blind_text_does_not_depend_on_the_evidence_and_what_is_left_of_it_is_found_again(seed, budget, lang):
    incident = Simulator(seed=seed, lang=lang, difficulty="hard").incident(0)
    trimmed = trim_incident(incident, budget, blind=True, whole_evidence=True)
    text = incident_text(trimmed.incident)
    assert text == incident_text(trim_incident(replace(incident, evidence=()), budget).incident)
    assert len(text) <= budget and not trimmed.over_budget
    kept = trimmed.incident.evidence
    assert kept == tuple(item for item in incident.evidence if item in text)
    assert trimmed.evidence_left_out == len(incident.evidence) - len(kept)


def kept(logs, budget, trace=None):
    """The lines that a blind cut leaves, without the marks of what is gone."""
    trimmed = trim_incident(make(logs, trace), budget, blind=True).incident
    return [line for line in (*trimmed.logs, *trimmed.trace_lines) if not line.startswith("…")]


# none repeats another, or it would stand back for that alone
QUIET = [
    f"10:{number:02} INFO api-{chr(97 + number)} request of user {chr(97 + number)} served" for number in range(20)
]


@pytest.mark.parametrize(
    "line",
    [
        "10:20 FATAL db: no space left",
        "10:20 [error] mod_jk child in state 6",
        "10:20 db: IOException while reading a block",
        "10:20 db 连接超时",
        "metric db p99_ms=5656 (usual 27)",
        "metric db free=0.5 (usual 9.8)",
        "span db query 2378.0ms (usual 162.6ms)",
    ],
)
@pytest.mark.parametrize("place", [0, 11, 20])
def test_blind_keeps_what_is_severe_or_far_from_usual(line, place):
    assert line in kept([*QUIET[:place], line, *QUIET[place:]], 300)
    assert line in kept(QUIET, 300, trace="\n".join([*QUIET[:place], line, *QUIET[place:]]))


def test_blind_prefers_new_lines_to_repetitions_and_causes_to_effects():
    errors = [f"10:{number:02} ERROR api{number} call {number} failed" for number in range(20)]
    other = "10:30 ERROR disk of the ledger is full"
    found = kept([*errors, other], 200)
    assert other in found and errors[0] in found


@pytest.mark.parametrize(
    "line", ["x p=1.0 (usual 1.0)", "x p=- (usual -)", "x (usual 5)", "x 3 or so (usual 5)", "alertmanager up"]
)
def test_blind_takes_no_odd_line_for_trouble(line):
    lines = [*"abcdefghij", line, "z"]
    assert by_salience(lines, []) == list(range(12))
    assert by_salience([*lines, "p=1e999 (usual 1)"], [])[0] == 12


def test_a_long_incident_is_cut_quickly_enough_to_count_lines():
    """Every line is looked at once and the cut is found by bisection: a fixed number of measurements."""
    calls = 0

    def measure(text: str) -> int:
        nonlocal calls
        calls += 1
        return len(text)

    digits = "1" * 50_000 + " (usual 3)"
    trim_incident(make([*QUIET * 200, digits]), 1200, measure=measure, blind=True)
    assert calls < 40


@pytest.mark.parametrize("budget", [60, 80, 100])
def test_a_blind_cut_within_a_line_is_the_same_with_and_without_evidence(budget):
    lines = [f"ERROR {letter * 200} disk full" for letter in "abcdefgh"]
    bare = trim_incident(make(lines), budget)
    known = trim_incident(make(lines, evidence=["disk full"]), budget, whole_evidence=True, blind=True)
    assert known.incident == bare.incident and (known.evidence_left_out, known.over_budget) == (1, False)
    with pytest.raises(IncidentError, match="leaves no room for its data"):
        trim_incident(make(lines, evidence=["disk full"]), 20, blind=True)
    least = trim_incident(make(lines, evidence=["disk full"]), 20, whole_evidence=True, blind=True)
    assert least.over_budget and least.incident.logs[0] == lines[0][:20] and not least.incident.evidence


@pytest.mark.parametrize("words", [1, 40_000])
@pytest.mark.parametrize("place", [0, 1, 21])
def test_an_endless_line_does_not_keep_out_all_others(words, place):
    """As JSON logs and stack traces in one line are: what the line begins with, and still what else is severe."""
    endless = "ERROR stack " + "at com.shop.Cart " * 100 * words
    fatal = "10:20 FATAL db: no space left"
    lines = [*QUIET, fatal]
    lines.insert(place, endless)
    found = kept(lines, 600)
    assert fatal in found and len(found) > 3
    (cut,) = (line for line in found if line.startswith("ERROR stack"))
    assert cut[-1] == "…" and endless.startswith(cut[:-1]) and len(cut) == 301
    # in the unit that the budget counts
    by_words = trim_incident(make(lines), 40, measure=lambda text: len(text.split()), blind=True).incident
    (cut,) = (line for line in by_words.logs if line.startswith("ERROR stack"))
    assert fatal in by_words.logs and 10 <= len(cut.split()) <= 21


def test_a_blind_cut_leaves_lines_alone_that_the_budget_holds():
    lines = [*QUIET, "ERROR " + "x" * 300]
    assert lines[-1] in kept(lines, 400)
    # 4,000 characters are 20 words
    long = "ERROR " + ("x" * 200 + " ") * 19
    assert long in trim_incident(make([*QUIET * 9, long]), 600, measure=lambda text: len(text.split())).incident.logs


WORDS = st.text(st.sampled_from("ab <|>\n\u200b"), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(logs=st.lists(WORDS, min_size=1, max_size=12), pick=st.integers(0, 11), budget=st.integers(90, 300))
def test_any_text(logs, pick, budget):
    chosen = logs[pick % len(logs)]
    incident = make(logs, evidence=[chosen] if chosen.strip() else [])
    trimmed = trim_incident(incident, budget)
    text = incident_text(trimmed.incident)
    assert len(text) <= budget
    assert len(trimmed.incident.evidence) == len(incident.evidence)
    whole = incident_text(neutralise_incident(incident))
    assert all(item in text and item in whole for item in trimmed.incident.evidence)
