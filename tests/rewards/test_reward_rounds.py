"""Adversarial first rounds: what quotations earn and verdicts cost, and why. The answer is right throughout."""

import itertools
import time
from typing import NamedTuple

import numpy as np
import pytest

from verl_aiops.rewards.aiops_mturn import compute_score
from verl_aiops.rewards.triage.quotes import MAX_READ_CHARS

CPU = "10:00:07 adservice cpu 98% usual 12% throttled"
CALL = '10:00:09 frontend GET "/ads" 503 after 3000 ms'
OTHERS = [
    "10:00:01 cartservice cpu 11% usual 12%",
    "10:00:02 checkout order accepted",
    "10:00:11 emailservice queue length 3",
    "10:00:12 告警：广告接口超时，持续三分钟",
]
LINES = [OTHERS[0], OTHERS[1], CPU, CALL, OTHERS[2], OTHERS[3]]
INCIDENT = "\n".join(LINES)
TRUTH = {
    "service": "adservice",
    "incident_type": "cpu_saturation",
    "evidence": [CPU, CALL],
    "candidates": {"service": ["adservice", "cartservice"], "incident_type": ["cpu_saturation", "network_delay"]},
}
RIGHT = '{"service": "adservice", "incident_type": "cpu_saturation"}'
WRONG = '{"service": "cartservice", "incident_type": "network_delay"}'
HALF = '{"service": "adservice", "incident_type": "network_delay"}'
INSTRUCTION = "Quote the lines that show it, word for word."


def score(*turns, **settings):
    return compute_score("aiops_mturn", "", TRUTH, {"turns": turns, "incident_text": INCIDENT}, **settings)


class Row(NamedTuple):
    early: str
    expected: dict
    reason: str


def quoted(*lines, marks='""'):
    return "I see " + " and ".join(marks[0] + line + marks[1] for line in lines)


ALL = {"quotes": 2, "invented": 0, "evidence": 1, "score": 1, "early_verdict": 0}
ONE = {"quotes": 1, "invented": 0, "evidence": 0.5**0.5, "evidence_precision": 1, "evidence_recall": 0.5}
NONE = {"quotes": 0, "invented": 0, "evidence": 0, "score": 0.85, "early_verdict": 0}
FAKE = {"quotes": 0, "invented": 1, "evidence": 0, "score": 0.8375}
VERDICT = {"early_verdict": 1, "score": 0.80}
SAID = {"early_verdict": 1, "quotes": 1}
JSON = {"early_verdict": 1, "invented": 1, "score": 0.7875}  # its second key is a quotation, too
CALM = {"early_verdict": 0, "score": 0.85}

QUOTATIONS = [
    Row(quoted(CPU, CALL), ALL, "both known lines in straight quotes, one of them with such quotes inside"),
    Row(quoted(CPU, CALL, marks="“”"), ALL, "curly quotes"),
    Row(quoted(CPU, CALL, marks="「」"), ALL, "corner brackets"),
    Row(quoted(CPU, CALL, marks="``"), ALL, "backticks"),
    Row(quoted(CPU, marks="「」") + quoted(CALL, marks="“”"), ALL, "mixed marks"),
    Row(f"```log\n{CPU}\n{CALL}\n```", {**ALL, "quotes": 1}, "a fenced block that is one stretch of the incident"),
    Row(f"```\n{CALL}\n{CPU}\n```", ALL, "a fenced block of lines in another order: each line is a quotation"),
    Row(f'"{CPU}\n{CALL}"', {**ALL, "quotes": 1}, "one quotation over two lines"),
    Row(quoted(CALL, CPU, CALL, CPU, CPU), ALL, "repeating changes nothing"),
    Row(quoted(f"  {CPU} ", f"{CALL}\t"), ALL, "the ends are trimmed"),
    Row(quoted(CPU), ONE, "one of two"),
    Row(quoted(CPU, CPU[:-10], CPU[5:]), ONE | {"quotes": 3}, "parts of a quoted line earn nothing more"),
    Row(quoted(CPU[9:]), ONE, "a line without its time stamp"),
    Row(quoted(CPU, OTHERS[0]), {"evidence_precision": 0.5, "evidence": 0.5 * 0.5**0.5}, "one right, one beside it"),
    Row(quoted(OTHERS[0]), {"quotes": 1, "invented": 0, "evidence": 0, "score": 0.85}, "verbatim, but no evidence"),
    Row(quoted(INCIDENT), {"evidence_precision": 2 / 6, "evidence_recall": 1, "evidence": 1 / 3}, "all at once"),
    Row(quoted(*LINES), {"evidence_precision": 2 / 6, "evidence_recall": 1, "evidence": 1 / 3}, "all, line by line"),
    Row(quoted(INCIDENT, CPU, CALL), {"evidence_precision": 2 / 6, "evidence": 1 / 3}, "all, and then the right ones"),
    Row(quoted(":00:07 adse"), ONE, "a short part that occurs once points at its line"),
    Row(quoted(" usual 12%"), {"quotes": 1, "evidence_precision": 0.5}, "a phrase of two lines, one of them evidence"),
    Row(quoted("10:00:0"), NONE, "too short to count, though it occurs"),
    Row(quoted("c      pu"), NONE, "padded with spaces to the minimum length"),
    Row(quoted("cpu  98%"), NONE, "seven characters other than white space"),
    Row(quoted("slow", "odd", "`x`"), NONE, "scare quotes are no quotations"),
    Row(quoted("adservice", "network_delay"), NONE, "bare labels are names, not quotations"),
    Row(quoted(""), NONE, "an empty quotation"),
    Row(quoted(" \n "), NONE, "a blank one"),
    Row(CPU + "\n" + CALL, NONE, "copied without marks: not quoted"),
    Row("'" + CPU + "'", NONE, "single quotes are apostrophes"),
    Row("<<" + CPU + ">>", NONE, "other marks do not quote"),
    Row('"' + CPU, NONE, "never closed"),
    Row(CPU + '"', NONE, "never opened"),
    Row("”" + CPU + "“", NONE, "closed before it is opened"),
    Row("“" + CPU + '"', NONE, "opened and closed by different marks"),
    Row(quoted(CPU.replace("98", "99")), FAKE, "one digit altered"),
    Row(quoted(CPU.upper()), FAKE, "the case altered"),
    Row(quoted(CPU.replace(" ", "  ")), FAKE, "spaces doubled"),
    Row(quoted(CPU.replace(" ", "\u00a0")), FAKE, "spaces exchanged for no-break spaces"),
    Row(quoted(CPU.replace("a", "а")), FAKE, "letters exchanged for look-alikes"),
    Row(quoted(CPU[:20] + "\u200b" + CPU[20:]), FAKE, "a zero-width space inside"),
    Row(quoted("\u202e" + CPU), FAKE, "a bidirectional override in front"),
    Row(quoted("ａ" + CPU[10:]), FAKE, "quotations are compared as they stand, not under NFKC"),
    Row(quoted(CPU + "..."), FAKE, "an ellipsis added inside the marks"),
    Row(quoted(CPU[:12] + " ... " + CPU[-9:]), FAKE, "an ellipsis in the middle"),
    Row(quoted(OTHERS[1] + " " + OTHERS[2]), FAKE, "two lines run together"),
    Row(quoted(INSTRUCTION), FAKE, "the instruction is not the incident"),
    Row(quoted("OOM killed adservice at once"), FAKE, "invented from nothing"),
    Row(quoted("one bad line here", "two bad lines here"), {"invented": 2, "score": 0.825}, "two invented"),
    Row(quoted(*(f"bad line number {n}" for n in range(9))), {"invented": 9, "score": 0.80}, "four cost it all"),
    Row(quoted(CPU, "bad line here"), {"invented": 1, "evidence_precision": 0.5}, "an invented one beside a right one"),
    Row(quoted(CALL.replace("503", "504")), {"invented": 1}, "altered after marks of the line's own"),
    Row(f'The 5" disk is fine. "{CPU}" and "{CALL}"', {"quotes": 2, "evidence_recall": 1}, "a stray mark before"),
    Row(f'A " here. "{CPU}" and "{CALL}"', {"quotes": 2, "evidence_recall": 1}, "a stray mark between spaces"),
    Row(f'x"{CPU}"', NONE, "a mark right after a letter opens nothing"),
    Row(quoted(CPU, f"{CALL}\n10:"), ALL, "three characters of the next line do not quote it"),
    Row(quoted(OTHERS[3][9:], marks="「」"), {"quotes": 1, "invented": 0, "evidence": 0}, "Chinese, no evidence"),
    Row(quoted(*(line[n:] for line in LINES for n in range(15))), {"evidence": 0}, "ninety quotations are no choice"),
    Row('"' * 30_000, {"quotes": 0, "invented": 0}, "nothing but marks"),
    Row('"a' * 15_000, {"evidence": 0, "early_verdict": 0}, "marks between letters"),
]  # fmt: skip

VERDICTS = [
    Row(RIGHT, JSON, "the answer in advance"),
    Row(WRONG, JSON, "a wrong one likewise: the cost does not hint at the truth"),
    Row("```json\n" + RIGHT + "\n```", JSON, "in a fence"),
    Row("{'service': 'adservice'}", VERDICT, "as a Python dict"),
    Row('{ "\\u0073ervice" : "adservice" }', JSON, "with an escaped key"),
    Row('{"lines": 3}', VERDICT, "any JSON object"),
    Row('["adservice", "cpu_saturation"]', VERDICT, "a JSON array"),
    Row('So "service": "adservice"', CALM, "a pair without brackets, in running text, is not caught"),
    Row("Service: adservice", VERDICT, "a field at the start"),
    Row("Hm.\n- **Service**: adservice", VERDICT, "in a list, in bold"),
    Row("Hm.\n| service = adservice |", VERDICT, "in a table"),
    Row("(service=adservice, type=cpu)", VERDICT, "in brackets"),
    Row("SERVICE： adservice", VERDICT, "upper case, full-width colon"),
    Row("ｓｅｒｖｉｃｅ：adservice", VERDICT, "full-width letters"),
    Row("ser\u200bvice: adservice", VERDICT, "a zero-width space inside the key"),
    Row("The faulty service is adservice.", VERDICT, "a sentence"),
    Row("incident_type: cpu_saturation", VERDICT, "the other field"),
    Row("This makes the incident type cpu_saturation.", CALM, "free prose is not caught"),
    Row("The root cause is adservice.", VERDICT, "a root cause"),
    Row("Root cause: adservice", VERDICT, "with a colon"),
    Row("**Root-cause** = adservice", VERDICT, "with emphasis"),
    Row("The root cause must be adservice.", VERDICT, "a firm guess"),
    Row("My final answer is adservice", VERDICT, "a final answer"),
    Row("Verdict: adservice", VERDICT, "a verdict"),
    Row("Conclusion: CPU.", VERDICT, "a conclusion"),
    Row("The culprit is adservice", VERDICT, "a culprit"),
    Row("<answer>adservice</answer>", VERDICT, "a tag"),
    Row("根因是 adservice。", VERDICT, "Chinese: the root cause is"),
    Row("故障类型：cpu_saturation", VERDICT, "Chinese: fault type"),
    Row("故障服务为 adservice", VERDICT, "Chinese: the faulty service is"),
    Row("结论：CPU 打满", VERDICT, "Chinese: conclusion"),
    Row("最终答案: adservice", VERDICT, "Chinese: final answer"),
    Row("The root cause is not clear yet.", CALM, "thinking aloud"),
    Row("What the root cause is?", CALM, "asking"),
    Row("No verdict yet. The final answer comes in the next round.", CALM, "keeping to the rule, and saying so"),
    Row("The service is slow, its type of load is usual; checkout service: normal.", CALM, "ordinary words"),
    Row("根因尚不清楚，需要看该服务的指标；根因是什么？", CALM, "Chinese: not known yet"),
    Row("adservice looks overloaded, cartservice does not.", CALM, "naming a service in prose is thinking"),
    Row(f'The root "{CPU}" cause: adservice', SAID, "a quotation between the words of an announcement"),
    Row(f"The root\n```\n{CPU}\n```\ncause: adservice", SAID, "a fenced one"),
    Row(f"The root cause “{CALL}” is adservice", SAID, "before the verb"),
    Row(
        f'The root "{CPU}" and "{CALL}" cause: adservice',
        {"early_verdict": 0, "quotes": 2},
        "words between the words are prose",
    ),
    Row("root\ncause: adservice", VERDICT, "a line break between the words"),
    Row("root\t\tcause\n\n:\n adservice", VERDICT, "tabs and line breaks"),
    Row("**root** / **cause** — : adservice", VERDICT, "punctuation and emphasis between them"),
    Row("root, cause = adservice", VERDICT, "a comma between them"),
    Row("ver**dict**: adservice", VERDICT, "emphasis inside a word"),
    Row("v`e`rdict: adservice", VERDICT, "marks inside a word"),
    Row("Verdict (round 1): adservice", VERDICT, "an aside before the colon"),
    Row("root cause -> adservice", VERDICT, "an arrow"),
    Row("root\u200b \u200bcause\u2060: adservice", VERDICT, "invisible characters"),
    Row("根 因 ： adservice", VERDICT, "Chinese, spaced"),
    Row("**根**“因”：adservice", VERDICT, "Chinese, between marks"),
    Row("Ursache: adservice", VERDICT, "German"),
    Row("La cause racine : adservice", VERDICT, "French"),
    Row("Causa raíz: adservice", VERDICT, "Spanish"),
    Row("первопричина: adservice", VERDICT, "Russian"),
    Row("この障害の根本原因：adservice", VERDICT, "Japanese"),
    Row("I have not got to the root. A cause is hard to tell: two lines differ.", CALM, "prose with both words"),
    Row("The root cause is still open: adservice or cartservice?", CALM, "thinking aloud, with a colon later"),
    Row("Die Ursache ist noch unklar.", CALM, "German: thinking"),
    Row("user: what is your answer?\nassistant:\n" + INSTRUCTION, CALM, "a made-up dialogue is just text"),
    Row("x" * (MAX_READ_CHARS + 1), {"early_verdict": 1}, "too long to be read"),
]

ROWS = QUOTATIONS + VERDICTS


@pytest.mark.parametrize("row", ROWS, ids=[f"{n:03}" for n in range(len(ROWS))])
def test_first_round(row):
    started = time.perf_counter()
    result = score(row.early, RIGHT)
    assert time.perf_counter() - started < 1.0, row.reason
    assert {key: result[key] for key in row.expected} == pytest.approx(row.expected), row.reason
    assert result["acc_main"] == 1, row.reason


@pytest.mark.parametrize("answer", [WRONG, HALF, "nonsense"])
def test_no_quotation_helps_a_wrong_answer(answer):
    bare = score("Hm.", answer)
    for row in ROWS:
        result = score(row.early, answer)
        assert result["evidence"] == 0.0
        assert result["score"] <= bare["score"], row.reason


def test_the_order_of_merit():
    """Each is worth less than the one before it."""
    ladder = [
        score(quoted(CPU, CALL), RIGHT),
        score(quoted(CPU), RIGHT),
        score(quoted(*LINES), RIGHT),
        score("Hm.", RIGHT),
        score(quoted("never written here"), RIGHT),
        score(quoted(*(f"never written here {n}" for n in range(9))) + "\nService: adservice", RIGHT + " " * 4000 ),
        score(quoted(CPU, CALL), HALF),
        score(quoted(CPU, CALL), WRONG),
        score(quoted("never written here"), WRONG),
        score(quoted(CPU, CALL), "adservice"),
    ]  # fmt: skip
    scores = [result["score"] for result in ladder]
    assert all(higher > lower for higher, lower in itertools.pairwise(scores)), scores


def test_quotations_in_the_answer_are_not_read():
    result = score("Hm.", quoted(CPU, CALL))
    assert (result["quotes"], result["json_ok"], result["score"]) == (0, 0, 0)


def test_only_the_last_turn_is_the_answer():
    assert score(RIGHT, WRONG)["acc"] == 0
    assert score(RIGHT, "")["score"] == 0
    assert compute_score("", RIGHT, TRUTH, {"turns": [quoted(CPU), WRONG], "incident_text": INCIDENT})["acc"] == 0


def test_all_rounds_before_the_last_are_read_as_one():
    spread = score(quoted(CPU), f"{quoted(CALL)} {quoted(CPU)}", RIGHT)
    assert (spread["quotes"], spread["evidence"], spread["rounds"]) == (2, 1, 3)
    assert score("Hm.", "Service: adservice", RIGHT)["early_verdict"] == 1


@pytest.mark.parametrize("kind", [list, tuple, lambda turns: np.array(turns, dtype=object), np.array])
def test_turns_come_in_any_kind_of_sequence(kind):
    extra = {"turns": kind([quoted(CPU, CALL), RIGHT]), "incident_text": INCIDENT}
    assert compute_score("aiops_mturn", "ignored", TRUTH, extra)["score"] == pytest.approx(1.0)


@pytest.mark.parametrize("turns", [None, [], (), np.array([], dtype=object)])
def test_without_turns_the_whole_solution_is_the_answer(turns):
    result = compute_score("aiops_mturn", RIGHT, TRUTH, {"turns": turns, "incident_text": INCIDENT})
    assert (result["score"], result["evidence"], result["rounds"]) == (pytest.approx(0.85), 0, 1)


def test_without_the_incident_quotations_neither_earn_nor_cost():
    for text in (quoted(CPU, CALL), quoted("never written here")):
        result = compute_score("aiops_mturn", "", TRUTH, {"turns": [text, RIGHT]})
        assert (result["quotes"], result["invented"], result["score"]) == (0, 0, pytest.approx(0.85))


def test_without_known_evidence_quotations_earn_half_and_less_the_more_they_copy():
    truth = TRUTH | {"evidence": []}

    def earned(*lines):
        extra = {"turns": [quoted(*lines), RIGHT], "incident_text": INCIDENT}
        return compute_score("aiops_mturn", "", truth, extra)["evidence"]

    assert earned(CPU) == earned(OTHERS[0]) == earned(*LINES[:3]) == 0.5
    assert 0.5 > earned(*LINES[:4]) > earned(*LINES[:5]) > earned(*LINES) == earned(INCIDENT) == 0
    assert earned(CPU, "never written here") == 0.25


def test_blank_lines_are_no_passages_and_tabs_no_characters():
    incident = "\n \n".join(LINES) + "\na\t\t\t\t\t\t\tb"
    extra = {"turns": [quoted("\n \n".join(LINES[:3]), "a\t\t\t\t\t\t\tb"), RIGHT], "incident_text": incident}
    result = compute_score("", "", TRUTH | {"evidence": None}, extra)
    assert (result["quotes"], result["evidence"]) == (1, 0.5)


def test_what_stands_beside_evidence_in_its_line_is_its_context():
    truth = TRUTH | {"evidence": [CPU[9:]]}
    extra = {"turns": [quoted(CPU), RIGHT], "incident_text": INCIDENT}
    assert compute_score("", "", truth, extra)["evidence"] == 1


def test_evidence_on_one_line_with_everything_else_still_tells_choice_from_copying():
    truth = TRUTH | {"evidence": ["adservice cpu 98%"]}
    incident = "cartservice cpu 11%; checkout fine; adservice cpu 98%; emailservice fine; frontend slow"

    def earned(text):
        extra = {"turns": [quoted(text), RIGHT], "incident_text": incident}
        return compute_score("aiops_mturn", "", truth, extra)["evidence"]

    assert earned("adservice cpu 98%") == 1
    assert earned(incident) < 0.5


def test_evidence_of_several_lines_is_recalled_by_any_of_them():
    trace = "Traceback:\n  File ads.py, line 7\n\nQuotaError: cpu"
    incident = INCIDENT + "\n" + trace + "\n10:00:20 cartservice restarted"

    def judged(*lines):
        extra = {"turns": [quoted(*lines), RIGHT], "incident_text": incident}
        result = compute_score("", "", TRUTH | {"evidence": [trace, CPU]}, extra)
        return result["evidence_precision"], result["evidence_recall"]

    assert judged(trace, CPU) == judged("QuotaError: cpu", CPU) == (1, 1)
    assert judged("File ads.py, line 7") == (1, 0.5)
    assert judged(trace + "\n10:00:20 cartservice restarted") == (0.75, 0.5)


def test_verbatim_words_of_the_incident_are_no_verdict():
    incident = INCIDENT + "\nservice: adservice restarted, root cause: unknown fault"
    extra = {"turns": [quoted(incident.splitlines()[-1]), RIGHT], "incident_text": incident}
    assert compute_score("aiops_mturn", "", TRUTH, extra)["early_verdict"] == 0


@pytest.mark.parametrize(
    "early, caught",
    [
        ('"10:00:13 cartservice says root cause: none of ours" is what it says', 0),
        ('The "10:00:14 search for the root cause" is adservice', 1),
        ('"10:00:14 search for the root cause": adservice', 1),
        ('I see "10:00:14 search for the root cause" and "10:00:07 adservice cpu 98%".', 0),
    ],
)
def test_the_incidents_own_words_cannot_begin_a_verdict(early, caught):
    incident = INCIDENT + "\n10:00:13 cartservice says root cause: none of ours\n10:00:14 search for the root cause"
    extra = {"turns": [early, RIGHT], "incident_text": incident}
    assert compute_score("aiops_mturn", "", TRUTH, extra)["early_verdict"] == caught


@pytest.mark.parametrize("gap", ["\n", "\n\n", " \n ", "\r\n", "\t", "  ", "\u00a0", "\u200b", "\x0b", "\u2028"])
@pytest.mark.parametrize("marks", ['""', "``", "“”", "「」", ("```\n", "\n```")])
def test_a_quotation_whose_spaces_became_something_else_is_altered(gap, marks):
    whole = score(quoted(CPU, marks=marks), RIGHT)
    assert whole["evidence"] > 0
    words = CPU.split(" ")
    for at in range(1, len(words)):
        altered = " ".join(words[:at]) + gap + " ".join(words[at:])
        result = score(quoted(altered, marks=marks), RIGHT)
        assert result["evidence"] == 0 and result["score"] < 0.85, altered
    assert score(quoted(CPU.replace(" ", gap), marks=marks), RIGHT)["evidence"] == 0


def test_whole_lines_are_quotations_whatever_stands_between_them():
    kept = f"{CPU}\n{CALL}"
    for text in (f"```\n{CALL}\n{CPU}\n```", f"```\n  {CPU}\n\n  {CALL}\n```", f"```\n{CPU[9:]}\n{CALL[:-9]}\n```"):
        assert score(text, RIGHT)["evidence_recall"] == score(f'"{kept}"', RIGHT)["evidence_recall"] == 1.0, text


def test_json_log_lines_can_be_quoted_whole():
    line = '{"level": "error", "svc": "adservice", "msg": "cpu quota \\"ads\\" used up", "n": {"cpu": "98"}}'
    extra = {"turns": [quoted(line, CPU), RIGHT], "incident_text": INCIDENT + "\n" + line}
    result = compute_score("aiops_mturn", "", TRUTH | {"evidence": [line, CPU]}, extra)
    assert (result["quotes"], result["invented"], result["evidence"], result["early_verdict"]) == (2, 0, 1, 0)


def test_length_costs_from_the_budget_on():
    costs = [score("x" * (n - len(RIGHT)), RIGHT)["overlong"] for n in (4000, 5000, 8000, 9000)]
    assert costs == [0, 0.25, 1, 1]
    assert score("x" * 5000, RIGHT, length_budget=6000)["overlong"] == 0
