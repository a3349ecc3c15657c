"""The numbers of a comparison against plain loops over the answers."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from compare_harness import Guessing, evaluated, in_faults, questions_of

from verl_aiops.evaluation.compare.flips import NO_ANSWER, examples
from verl_aiops.evaluation.compare.numbers import comparison_of
from verl_aiops.evaluation.compare.pairing import pair
from verl_aiops.evaluation.compare.read_runs import read_runs
from verl_aiops.evaluation.stats.estimates import table_of as sums_of
from verl_aiops.evaluation.stats.estimates import values_of
from verl_aiops.evaluation.stats.metrics import METRICS, In, is_share, metrics, over_k_titles
from verl_aiops.evaluation.stats.paired_tests import holm, mcnemar_exact

LABELS = ("sft", "grpo", "ppo")
# macro-F1 apart, which is no mean over incidents
COMPARED = [name for name, metric in metrics(In.COMPARE).items() if metric.value]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Three runs with 3, 3 and 2 answers to each incident."""
    base, questions = tmp_path_factory.mktemp("several"), in_faults(questions_of(24))
    evaluated(base / "sft", questions, Guessing(0.4, 0.8, 0.5), samples=3)
    evaluated(base / "grpo", questions, Guessing(0.8, 1.0, 0.9, seed=1), samples=3)
    evaluated(base / "ppo", questions, Guessing(0.5, 0.9, 0.7, seed=2), samples=2)
    return pair(read_runs([str(base / label) for label in LABELS]))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Two runs with one answer to each incident, each incident a fault of its own."""
    base, questions = tmp_path_factory.mktemp("single"), questions_of(30)
    for label, skill in (("before", 0.45), ("after", 0.7)):
        evaluated(base / label, questions, Guessing(skill, seed=int(10 * skill)))
    return pair(read_runs([str(base / label) for label in ("before", "after")]))


@pytest.fixture(scope="module")
def result(several):
    return comparison_of(several)


def mean_of(values):
    values = [value for value in values if value is not None]
    return math.fsum(values) / len(values) if values else None


def by_incident(pairing, label, metric):
    return [mean_of(METRICS[metric].value(line) for line in lines) for lines in pairing.answers[label]]


@pytest.mark.parametrize("metric", COMPARED)
def test_values_are_means_over_incidents_and_differences_are_theirs(several, result, metric):
    for label in LABELS:
        values = by_incident(several, label, metric)
        assert None not in values
        found = result["metrics"][metric]["values"][label]
        assert found["value"] == pytest.approx(mean_of(values)) and found["n"] == 24 and found["groups"] == 12
        assert found["low"] <= found["value"] <= found["high"]
    first = by_incident(several, "sft", metric)
    for label in LABELS[1:]:
        entry = result["metrics"][metric]["comparisons"][label]
        differences = [b - a for a, b in zip(first, by_incident(several, label, metric))]
        assert entry["difference"]["value"] == pytest.approx(mean_of(differences))
        assert entry["test"] == "exact"
        assert entry["p"] == pytest.approx(brute_force_p(several, differences))


def brute_force_p(pairing, differences):
    sums = Counter()
    for at, difference in enumerate(differences):
        sums[pairing.info(at)["group"]] += difference
    observed = abs(sum(sums.values()))
    totals = [
        abs(math.fsum(s * x for s, x in zip(signs, sums.values()))) for signs in itertools.product((-1, 1), repeat=12)
    ]
    return sum(total >= observed - 1e-9 for total in totals) / len(totals)


def test_p_values_are_corrected_over_the_runs_of_each_metric(result):
    for metric in COMPARED:
        entries = result["metrics"][metric]["comparisons"]
        assert [entry["p_holm"] for entry in entries.values()] == holm([entry["p"] for entry in entries.values()])


def test_the_figures_of_a_run_are_those_of_its_evaluation(several, result):
    """With as many answers to every incident, the mean over incidents is the mean over answers."""
    for label in LABELS:
        summary = values_of(sums_of([line for lines in several.answers[label] for line in lines]), seed=0)
        for metric in (*COMPARED, "macro_f1_service", "macro_f1_type"):
            assert result["metrics"][metric]["values"][label]["value"] == pytest.approx(summary[metric].value), metric


def test_macro_f1_has_an_interval_and_no_test(result):
    for name in ("macro_f1_service", "macro_f1_type"):
        metric = result["metrics"][name]
        for label in LABELS[1:]:
            entry = metric["comparisons"][label]
            change = metric["values"][label]["value"] - metric["values"]["sft"]["value"]
            assert entry["difference"]["value"] == pytest.approx(change)
            assert entry["difference"]["low"] <= entry["difference"]["high"]
            assert (entry["p"], entry["p_holm"], entry["test"]) == (None, None, None)


def test_a_run_compared_with_itself_shows_nothing(several):
    twins = pair([several.runs[0], replace(several.runs[0], label="again")])
    result = comparison_of(twins)
    for metric in COMPARED:
        entry = result["metrics"][metric]["comparisons"]["again"]
        # nothing tells the two apart, which bounds what is left to tell
        difference, other = entry["difference"], 0.0
        if is_share(metric):
            other = 1 - 0.025 ** (1 / difference["groups"])
        assert (difference["value"], difference["low"], difference["high"]) == pytest.approx((0, -other, other))
        assert entry["p"] == 1
    assert result["flips"]["again"]["better"] == result["flips"]["again"]["worse"] == []


def test_metrics_that_a_run_does_not_have_are_compared_of_none(several):
    lines = {
        name: [{**line, "tokens": None} for line in incident] for name, incident in several.runs[1].incidents.items()
    }
    silent = replace(several.runs[1], incidents=lines)
    result = comparison_of(pair([several.runs[0], silent]))
    tokens = result["metrics"]["tokens"]
    assert tokens["values"]["sft"]["value"] is None and tokens["values"]["sft"]["n"] == 0
    assert tokens["comparisons"]["grpo"]["p"] is None
    assert result["metrics"]["chars"]["values"]["sft"]["n"] == 24


def test_over_k_is_the_mean_over_all_choices_of_k_answers(several, result):
    for label in LABELS:
        most = 2 if label == "ppo" else 3
        for name in over_k_titles():
            points = result["over_k"][name]["values"][label]
            assert [point["k"] for point in points] == list(range(1, most + 1))
            for point in points:
                expected = mean_of(best_of(lines, name, point["k"]) for lines in several.answers[label])
                assert point["value"] == pytest.approx(expected)


def best_of(lines, name, k):
    found = []
    for subset in itertools.combinations(lines, k):
        if name == "pass":
            found.append(float(any(line["score"]["acc_main"] for line in subset)))
            continue
        best = max(line["score"]["score"] for line in subset)
        found.append(mean_of(METRICS[name].value(line) for line in subset if line["score"]["score"] == best))
    return mean_of(found)


def test_differences_over_k_end_with_the_fewer_answers(result):
    for name in over_k_titles():
        part = result["over_k"][name]
        assert [len(part["differences"][label]) for label in ("grpo", "ppo")] == [3, 2]
        for label in ("grpo", "ppo"):
            for point in part["differences"][label]:
                values = [part["values"][run][point["k"] - 1]["value"] for run in (label, "sft")]
                assert point["value"] == pytest.approx(values[0] - values[1])
    one = result["over_k"]["pass"]["values"]["sft"][0]["value"]
    assert one == pytest.approx(result["metrics"]["acc_main"]["values"]["sft"]["value"])


def test_slices_hold_every_incident_once(several, result):
    for key, slices in result["by"].items():
        assert sum(part["incidents"] for part in slices.values()) == 24
        for name, part in slices.items():
            members = [at for at, value in enumerate(several.slices(key)) if value == name]
            assert len(members) == part["incidents"]
            for metric, label in itertools.product(metrics(In.SLICES), LABELS):
                values = by_incident(several, label, metric)
                assert part[metric]["values"][label]["value"] == pytest.approx(mean_of(values[at] for at in members))
    assert list(result["by"]["difficulty"]) == ["easy", "medium", "hard"]


def test_classes_have_their_recall_and_what_was_said_instead(several, result):
    for field, key, right in (("service", "service", "service_ok"), ("type", "incident_type", "type_ok")):
        classes = result["classes"][field]
        assert sum(entry["incidents"] for entry in classes) == 24
        assert [entry["incidents"] for entry in classes] == sorted((e["incidents"] for e in classes), reverse=True)
        for entry, label in itertools.product(classes, LABELS):
            members = [a for a in several.answers[label] if a[0]["ground_truth"][key] == entry["label"]]
            recall = mean_of(mean_of(line["score"][right] for line in lines) for lines in members)
            assert entry["values"][label]["value"] == pytest.approx(recall)
            said = Counter(
                line["predicted"][key].lower() if line["predicted"] else NO_ANSWER
                for lines in members
                for line in lines
                if not line["score"][right]
            )
            counts = [count for _, count in entry["wrong"][label]]
            assert counts == [count for _, count in said.most_common(3)]
            assert all(said[wrong] == count for wrong, count in entry["wrong"][label])


def test_flips_are_the_incidents_with_other_shares_of_right_answers(several, result):
    first = by_incident(several, "sft", "acc_main")
    for label in LABELS[1:]:
        found, after = result["flips"][label], by_incident(several, label, "acc_main")
        for direction, sign in (("better", 1), ("worse", -1)):
            expected = {several.ids[at] for at in range(24) if (after[at] - first[at]) * sign > 0}
            assert {entry["id"] for entry in found[direction]} == expected
            changes = [abs(entry["after"] - entry["before"]) for entry in found[direction]]
            assert changes == sorted(changes, reverse=True)
        same = found["same_right"] + found["same_wrong"] + found["same_mixed"]
        assert same + len(found["better"]) + len(found["worse"]) == 24


def test_examples_show_the_answers_that_changed(several, result):
    for label in LABELS[1:]:
        for direction in ("better", "worse"):
            for entry, before, after in examples(several, label, result["flips"][label][direction]):
                assert before["id"] == after["id"] == entry["id"]
                right = (bool(before["score"]["acc_main"]), bool(after["score"]["acc_main"]))
                assert right == ((False, True) if direction == "better" else (True, False))


def test_single_answers_are_tested_by_mcnemar_too(single):
    result = comparison_of(single)
    before, after = (by_incident(single, label, "acc_main") for label in ("before", "after"))
    fixed, broken = (sum(b - a == sign for a, b in zip(before, after)) for sign in (1, -1))
    found = result["mcnemar"]["after"]
    assert (found["fixed"], found["broken"]) == (fixed, broken) and fixed + broken > 0
    assert found["p"] == found["p_holm"] == mcnemar_exact(broken, fixed)
    assert result["metrics"]["acc_main"]["comparisons"]["after"]["p"] == pytest.approx(found["p"])
    assert result["over_k"] is None


def test_several_answers_are_not_tested_by_mcnemar(result):
    assert result["mcnemar"] is None


def test_a_comparison_is_json_and_the_same_again(several, result):
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text) == json.loads(json.dumps(comparison_of(several)))
    again = comparison_of(several, seed=1)["metrics"]
    assert again["chars"] != result["metrics"]["chars"]  # draws
    assert again["score"]["values"] == result["metrics"]["score"]["values"]  # none


def test_few_faults_have_no_intervals(several):
    kept = list(several.ids[:8])
    runs = [replace(run, incidents={name: run.incidents[name] for name in kept}) for run in several.runs]
    result = comparison_of(pair(runs))
    assert result["groups"] == 4
    for metric in result["metrics"].values():
        for mean in metric["values"].values():
            assert mean["value"] is not None and mean["low"] is None and mean["high"] is None
