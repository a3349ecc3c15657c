"""Labelling of scored answers, against a brute-force reading of each rule."""

import itertools
import math
import random

import pytest
import torch

from verl_aiops.losses import label_groups, label_preferences

RULES = ["best_vs_worst", "all_pairs", "random_pair", "best_vs_random"]


def random_batch(seed):
    """Uneven groups in any order, scores with many ties, some missing."""
    rng = random.Random(seed)
    groups = [g for g in range(rng.randint(1, 6)) for _ in range(rng.randint(1, 6))]
    rng.shuffle(groups)
    scores = [rng.choice([0.0, 0.05, 0.45, 0.45, 0.85, 1.0, math.nan, -math.inf]) for _ in groups]
    answers = [rng.choice("abc") for _ in groups]
    return scores, groups, answers


def real(scores, groups, answers, gap):
    """Every ordered pair that is a preference, by group."""
    found = {}
    for i, j in itertools.permutations(range(len(scores)), 2):
        if groups[i] == groups[j] and math.isfinite(scores[i]) and math.isfinite(scores[j]):
            if scores[i] > scores[j] and scores[i] - scores[j] >= gap and (answers is None or answers[i] != answers[j]):
                found.setdefault(groups[i], []).append((i, j))
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("gap", [0.0, 0.3])
@pytest.mark.parametrize("with_answers", [False, True])
def test_rules_against_brute_force(rule, gap, with_answers):
    for seed in range(150):
        scores, groups, answers = random_batch(seed)
        answers = answers if with_answers else None
        expected = real(scores, groups, answers, gap)
        labels = label_groups(scores, groups, rule=rule, min_gap=gap, answers=answers, seed=seed)
        pairs = list(zip(labels.chosen.tolist(), labels.rejected.tolist()))
        by_group = {}
        for chosen, rejected in pairs:
            by_group.setdefault(groups[chosen], []).append((chosen, rejected))
        assert by_group.keys() == expected.keys()
        for group, made in by_group.items():
            assert set(made) <= set(expected[group])
            largest = max(scores[i] - scores[j] for i, j in expected[group])
            if rule == "all_pairs":
                assert sorted(made) == sorted(expected[group])
            else:
                assert len(made) == 1
            if rule == "best_vs_worst":
                assert scores[made[0][0]] - scores[made[0][1]] == largest
            if rule == "best_vs_random":
                assert scores[made[0][0]] == max(scores[i] for i, _ in expected[group])
        assert (
            labels.groups
            == len(set(groups))
            == labels.groups_with_pair + labels.ties + labels.identical + labels.single
        )
        assert labels.groups_with_pair == len(by_group)
        assert labels.failed_rows == sum(not math.isfinite(s) for s in scores)


def test_ties_and_identical_answers_make_no_pair_and_are_counted():
    labels = label_groups([1, 1, 0.5, 0.5, 1, 0, 2], list("aabbccd"), answers=["x", "y", "x", "y", "z", "z", "x"])
    assert labels.chosen.tolist() == labels.rejected.tolist() == []
    assert (labels.ties, labels.identical, labels.single, labels.groups) == (2, 1, 1, 4)


def test_a_tie_does_not_go_to_the_first():
    for scores in ([0.5, 0.5], [0.0, 0.0, 0.0]):
        assert label_preferences(scores, [7] * len(scores))[0].numel() == 0


@pytest.mark.parametrize("rule", RULES)
def test_a_gap_of_exactly_min_gap_counts(rule):
    """Numbers that binary fractions hold, so that the difference is the gap to the last bit."""
    chosen, rejected = label_preferences([0.5, 0.75], ["p"] * 2, rule=rule, min_gap=0.25)
    assert (chosen.tolist(), rejected.tolist()) == ([1], [0])
    labels = label_groups([0.5, 0.75], ["p"] * 2, rule=rule, min_gap=0.2500001)
    assert labels.ties == 1 and labels.chosen.numel() == 0


def test_missing_scores_never_become_zeros():
    """A failed reward is no worst answer."""
    chosen, rejected = label_preferences([0.4, math.nan, 0.9], ["p"] * 3)
    assert (chosen.tolist(), rejected.tolist()) == ([2], [0])
    labels = label_groups([math.nan, 0.9], ["p"] * 2)
    assert labels.single == 1 and labels.failed_rows == 1 and labels.chosen.numel() == 0


def test_result_types_and_inputs():
    for scores in ([0.0, 1.0], (0, 1), torch.tensor([0.0, 1.0], dtype=torch.bfloat16)):
        chosen, rejected = label_preferences(scores, ("g", "g"))
        assert chosen.dtype == rejected.dtype == torch.int64 and chosen.shape == (1,)
        assert (chosen.item(), rejected.item()) == (1, 0)
    chosen, rejected = label_preferences([], [])
    assert chosen.shape == rejected.shape == (0,)


def test_random_rules_follow_the_seed_and_reach_every_pair():
    scores, groups = [0.0, 0.5, 1.0, 0.2], ["g"] * 4
    for rule, reachable in (("random_pair", 6), ("best_vs_random", 3)):
        made = [tuple(t.item() for t in label_preferences(scores, groups, rule=rule, seed=s)) for s in range(300)]
        assert len(set(made)) == reachable
        assert made[5] == tuple(t.item() for t in label_preferences(scores, groups, rule=rule, seed=5))


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"rule": "best_worst"}, "did you mean 'best_vs_worst'"),
        ({"min_gap": -1}, "min_gap=-1"),
        ({"answers": ["x"]}, "answers: expected 2 entries"),
        ({"group_ids": ["x"]}, "group_ids: expected 2 entries"),
    ],
)
def test_wrong_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        label_preferences([0.0, 1.0], **{"group_ids": ["a", "a"], **arguments})
