"""Metrics against what a plain loop gives, pass@k and best-of-k against every subset, intervals against known means."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.evaluation.run.summary import drop, section, summarise
from verl_aiops.evaluation.stats.best_of import best_of_k, pass_at_k, sizes
from verl_aiops.evaluation.stats.bootstrap import intervals, of_constant
from verl_aiops.evaluation.stats.estimates import class_table, table_of, values_of
from verl_aiops.evaluation.stats.metrics import METRICS, predicted_class

# --- pass@k, best of k ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n):
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([1] * right + [0] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_of_many_answers_stays_exact():
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5)
    assert pass_at_k(2000, 0, 1000) == 0.0 and pass_at_k(2000, 2000, 1) == 1.0
    for wrong in [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)]:
        with pytest.raises(ValueError, match="expected"):
            pass_at_k(*wrong)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.floats(0, 1)), min_size=1, max_size=6))
def test_best_of_k_is_the_mean_over_all_subsets_with_ties_shared(answers):
    scores, values = zip(*answers)
    for k in range(1, len(answers) + 1):
        expected = []
        for subset in itertools.combinations(answers, k):
            best = max(score for score, _ in subset)
            tied = [value for score, value in subset if score == best]
            expected.append(sum(tied) / len(tied))
        assert best_of_k(scores, values, k) == pytest.approx(sum(expected) / len(expected))


def test_best_of_one_is_the_mean_and_best_of_all_the_best():
    assert best_of_k([0.1, 0.9, 0.5], [1.0, 0.0, 0.5], 1) == pytest.approx(0.5)
    assert best_of_k([0.1, 0.9, 0.5], [1.0, 0.0, 0.5], 3) == 0.0
    with pytest.raises(ValueError, match="a value each"):
        best_of_k([1.0], [1.0, 2.0], 1)


def test_sizes_are_powers_of_two_and_all():
    assert [sizes(n) for n in (1, 2, 3, 4, 6, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8]]


# --- records ----------------------------------------------------------------------------------------------------------

SERVICES, TYPES = ("Api", "db", "cache"), ("oom", "disk_full")


def record(id="i", sample=0, truth=("db", "oom"), said=("db", "oom"), group=None, error=None, **score):
    right = [said is not None and said[at] == truth[at] for at in (0, 1)]
    scores = {
        "score": 0.05 + 0.4 * sum(right),
        "acc": sum(right) / 2,
        "acc_main": float(all(right)),
        "json_ok": float(said is not None),
        "service_ok": float(right[0]),
        "type_ok": float(right[1]),
        "evidence": 0.0,
        "evidence_precision": 0.0,
        "evidence_recall": 0.0,
        "quotes": 0.0,
        "invented": 0.0,
        "early_verdict": 0.0,
        "chars": 10.0,
    }
    ground_truth = {"service": truth[0], "incident_type": truth[1], "evidence": ["a line"]}
    return {
        "id": id,
        "group": group or id,
        "source": "s",
        "lang": None,
        "difficulty": None,
        "sample": sample,
        "seed": 0,
        "rounds": ["a", "b"],
        "cut": [False, False],
        "tokens": [3, 4],
        "ground_truth": ground_truth,
        "predicted": None if said is None else dict(zip(("service", "incident_type"), said)),
        "score": None if error else {**scores, **score},
        "error": error,
    }


def random_records(rng, incidents=12, samples=3):
    made = []
    for at in range(incidents):
        truth = (rng.choice(SERVICES), rng.choice(TYPES))
        for sample in range(samples):
            said = None if rng.random() < 0.2 else (rng.choice([*SERVICES, "made-up"]), rng.choice(TYPES))
            error = "HTTP 500" if rng.random() < 0.1 else None
            scores = {"evidence_recall": rng.random(), "quotes": float(rng.randrange(3)), "evidence": rng.random()}
            made.append(record(f"i{at}", sample, truth, said, f"g{at // 2}", error, **scores))
    return made


def brute_macro_f1(records, field, key):
    answered = [r for r in records if r["error"] is None]
    f1 = []
    for label in {r["ground_truth"][key] for r in answered}:
        truth = [r["ground_truth"][key] == label for r in answered]
        said = [(r["predicted"] or {}).get(key) == label for r in answered]
        both = sum(a and b for a, b in zip(truth, said))
        precision = both / sum(said) if any(said) else 0.0
        recall = both / sum(truth)
        f1.append(2 * precision * recall / (precision + recall) if both else 0.0)
    return sum(f1) / len(f1)


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_what_a_plain_loop_gives(seed):
    records = random_records(random.Random(seed))
    answered = [r for r in records if r["error"] is None]
    values = values_of(table_of(records), 0)
    for name in ("score", "acc_main", "service_ok", "type_ok", "json_ok", "evidence", "quotes", "chars"):
        assert values[name].value == pytest.approx(np.mean([r["score"][name] for r in answered])), name
        assert values[name].n == len(answered)
    assert values["evidence_rate"].value == pytest.approx(
        np.mean([r["score"]["evidence_recall"] > 0 for r in answered])
    )
    assert values["tokens"].value == 7 and values["cut"].value == 0
    assert values["macro_f1_service"].value == pytest.approx(brute_macro_f1(records, "service", "service"))
    assert values["macro_f1_type"].value == pytest.approx(brute_macro_f1(records, "type", "incident_type"))
    incidents = {}
    for r in answered:
        incidents.setdefault(r["id"], []).append(r)
    for k in (1, 2, 3):
        enough = [rs for rs in incidents.values() if len(rs) >= k]
        chosen = [[any(r["score"]["acc_main"] for r in s) for s in itertools.combinations(rs, k)] for rs in enough]
        assert values[f"pass@{k}"].value == pytest.approx(np.mean([np.mean(c) for c in chosen]))
        assert values[f"pass@{k}"].n == len(enough)
        assert values[f"best@{k}/acc_main"].value == pytest.approx(values[f"pass@{k}"].value)


@pytest.mark.parametrize("seed", range(3))
def test_reweighted_statistics_are_those_of_the_repeated_lines(seed):
    """What the bootstrap computes from sums is what one gets from lines that really occur so often."""
    rng = random.Random(seed)
    records = random_records(rng)
    table = table_of(records)
    weights = [rng.randrange(3) for _ in table.groups]
    weights[0] = max(1, weights[0])
    repeated = [
        {**r, "id": f"{r['id']}/{copy}"}
        for r in records
        for copy in range(weights[table.groups.index(r["group"])] if r["group"] in table.groups else 0)
    ]
    again = table_of(repeated)
    found = dict(zip(table.names, table.statistics(np.array([weights], dtype=float))[0]))
    expected = dict(zip(again.names, again.statistics(np.ones((1, len(again.groups))))[0]))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name)


def test_failed_lines_count_in_no_metric_and_are_shown():
    records = [record("a"), record("b", error="HTTP 500"), record("c", said=("db", "disk_full"))]
    found = section(records, 0)
    assert (found["incidents"], found["answers"], found["failed"]) == (3, 2, 1)
    assert found["metrics"]["acc_main"]["value"] == 0.5 and found["metrics"]["acc_main"]["n"] == 2


def test_nothing_answered_has_no_metrics():
    found = summarise([record("a", error="HTTP 500")], 0)
    assert found["overall"]["metrics"] == {} and found["overall"]["failed"] == 1 and found["classes"]["service"] == []


def test_incidents_with_too_few_answers_leave_pass_at_k():
    records = [record("a", 0), record("a", 1, said=None), record("b", 0, said=None), record("b", 1, error="x")]
    found = section(records, 0)["pass_at_k"]
    # two faults that differ leave everything open
    assert found["1"] == {"value": 0.25, "low": pytest.approx(0.0, abs=1e-12), "high": pytest.approx(1.0), "n": 2}
    assert found["2"]["value"] == 1.0 and found["2"]["n"] == 1


@pytest.mark.parametrize(
    "said, expected",
    [
        (None, 1.0),
        (("unknown", "oom"), 1.0),
        (("db", " N/A "), 1.0),
        (("", "oom"), 1.0),
        (("不确定", "oom"), 1.0),
        (("x" * 5000, "oom"), 1.0),
        (("made-up", "oom"), 0.0),
        (("db", "oom"), 0.0),
    ],
)
def test_abstentions(said, expected):
    assert METRICS["abstained"].value(record(said=said)) == expected


def test_a_label_that_reads_like_an_abstention_is_a_verdict_where_it_is_a_candidate():
    line = record(truth=("db", "oom"), said=("none", "oom"))
    line["ground_truth"]["candidates"] = {"service": ["db", "None"]}
    assert METRICS["abstained"].value(line) == 0.0
    assert METRICS["abstained"].value(record(truth=("unknown", "oom"), said=("unknown", "oom"))) == 0.0


def test_an_accepted_alias_is_its_class_and_an_invented_label_is_none():
    alias = record(truth=("Api", "oom"), said=("Api", "oom"))
    alias["predicted"]["service"] = "gateway"  # the score says that it was accepted
    invented = record("j", truth=("db", "oom"), said=("made-up", "oom"))
    assert predicted_class(alias, "service") == "api"
    rows = class_table([alias, invented], "service")
    assert rows == [
        {"label": "Api", "support": 1, "predicted": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0},
        {"label": "db", "support": 1, "predicted": 0, "precision": None, "recall": 0.0, "f1": 0.0},
    ]


def test_evidence_is_judged_where_there_is_some():
    known, unknown = record("a", evidence_recall=0.5, evidence_precision=1.0, quotes=1.0), record("b")
    unknown["ground_truth"]["evidence"] = []
    silent = record("c")
    values = values_of(table_of([known, unknown, silent]), 0)
    assert (values["evidence_recall"].value, values["evidence_recall"].n) == (0.25, 2)
    assert (values["evidence_rate"].value, values["evidence_rate"].n) == (0.5, 2)
    assert (values["evidence_precision"].value, values["evidence_precision"].n) == (1.0, 1)


def test_servers_that_count_no_tokens():
    line = record()
    line["tokens"] = None
    assert section([line], 0)["metrics"]["tokens"] == {"value": None, "low": None, "high": None, "n": 0}


# --- intervals --------------------------------------------------------------------------------------------------------


def mean_of(sums, counts):
    return lambda weights: ((weights @ sums) / (weights @ counts))[:, None]


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    """Clusters of unequal size whose answers share a rate: a bootstrap over answers would be far too narrow."""
    rng = np.random.default_rng(1)
    covered, naive_covered, runs = 0, 0, 300
    for run in range(runs):
        sizes_ = rng.integers(1, 6, 60)
        rates = rng.beta(0.6, 0.4, 60)
        sums = rng.binomial(sizes_, rates).astype(float)
        ((low, high),) = intervals(mean_of(sums, sizes_.astype(float)), 60, seed=run, draws=400)
        covered += low <= 0.6 <= high
        share, n = sums.sum() / sizes_.sum(), sizes_.sum()
        naive_covered += abs(share - 0.6) <= 1.96 * (share * (1 - share) / n) ** 0.5
    assert 0.90 <= covered / runs <= 0.98
    assert naive_covered / runs < 0.88


def test_intervals_are_seeded_and_need_two_groups():
    sums, counts = np.array([1.0, 0.0, 1.0]), np.ones(3)
    first, again, other = (intervals(mean_of(sums, counts), 3, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first[0, 0] < 2 / 3 < first[0, 1] and other.shape == (1, 2)
    assert np.isnan(intervals(mean_of(sums[:1], counts[:1]), 1, seed=0)).all()


def test_intervals_leave_draws_out_that_define_nothing():
    sums, counts = np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])
    with np.errstate(invalid="ignore"):
        assert intervals(mean_of(sums, counts), 3, seed=0).tolist() == [[1.0, 1.0]]


def test_answers_of_one_fault_widen_the_interval():
    apart = [record(f"i{at}", said=("db", "oom") if at % 2 else None) for at in range(24)]
    together = [{**line, "group": f"g{at // 8 % 2}{at % 2}"} for at, line in enumerate(apart)]
    wide, narrow = (values_of(table_of(lines), 0)["acc_main"] for lines in (together, apart))
    assert wide.value == narrow.value
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_the_drop_is_paired():
    """The same loss everywhere has no spread, however much the incidents differ."""
    plain = [record(f"i{at}", score=float(at % 2)) for at in range(10)]
    renamed = [{**r, "score": {**r["score"], "score": r["score"]["score"] - 0.25}} for r in plain]
    for line in renamed:
        line["ground_truth"] = {**line["ground_truth"], "service": "cache"}
    renamed[0] = {**renamed[0], "score": None, "error": "x"}
    found = drop(plain, renamed[:8], {"service": {"i1", "i2"}, "incident_type": set()}, 0)
    assert found["score"]["value"] == pytest.approx(0.25) and found["score"]["n"] == 7
    assert found["score"]["low"] == pytest.approx(0.25) == found["score"]["high"]
    assert found["service_named"]["n"] == 2 and found["service_unnamed"]["n"] == 5
    assert found["type_named"] is None and found["type_unnamed"] is None


# --- where all agree --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("count", [2, 6, 64])
def test_a_share_that_is_the_same_everywhere_has_the_exact_interval(count, right):
    """Clopper and Pearson's, over faults and not over answers."""
    # p with a chance of 2.5 % that all n trials come out like this
    likely = 0.025 ** (1 / count)
    exact = (likely, 1.0) if right else (0.0, 1.0 - likely)
    assert likely**count == pytest.approx(0.025)
    truth = {} if right else {"said": ("cache", "oom")}
    records = [record(f"i{at}", sample, **truth) for at in range(count) for sample in range(4)]
    found = section(records, 0)["metrics"]
    for name in ("acc_main", "service_ok", "macro_f1_service"):
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(exact), name
    together = section([{**line, "group": f"g{line['id'] in ('i0', 'i1')}"} for line in records], 0)["metrics"]
    if count == 6:
        assert together["acc_main"]["high"] - together["acc_main"]["low"] > exact[1] - exact[0]
    assert found["chars"]["low"] == found["chars"]["high"]  # an amount has no bounds


def test_one_answer_has_no_interval_of_no_width():
    found = section([record("a")], 0)["metrics"]["acc_main"]
    assert found["value"] == 1.0 and found["low"] != 1.0


def test_the_bounds_of_what_is_the_same_everywhere():
    assert of_constant(0.0, 6, 0, 1) == pytest.approx((0.0, 0.4593), abs=1e-4)
    assert of_constant(1.0, 6, 0, 1) == pytest.approx((0.5407, 1.0), abs=1e-4)
    assert of_constant(0.0, 6, -1, 1) == pytest.approx((-0.4593, 0.4593), abs=1e-4)
    assert of_constant(0.5, 1, 0, 1) == pytest.approx((0.0125, 0.9875))
    assert of_constant(0.0, 3000, 0, 1)[1] == pytest.approx(3.689 / 3000, rel=1e-3)


def test_shares_without_a_difference_still_leave_room_for_one():
    plain = [record(f"i{at}") for at in range(6)]
    renamed = [{**r, "ground_truth": {**r["ground_truth"], "service": "cache"}} for r in plain]
    found = drop(plain, renamed, {"service": set(), "incident_type": set()}, 0)
    low, high = of_constant(0.0, 6, -1, 1)
    assert (found["acc_main"]["low"], found["acc_main"]["high"]) == pytest.approx((low, high))
