"""The interval of how many comparisons a reward model ranks right goes by groups, in every report of it."""

import numpy as np
import pytest

from verl_aiops.evaluation.reward_model.measures import ranking
from verl_aiops.evaluation.stats.calibration import calibrate, plot_calibration
from verl_aiops.trainers.rm.result import HeldOut

# eight lists of four answers, ranked right in six of them and wrong in two
LISTS = [[3.0, 2.0, 1.0, 0.0] if at < 6 else [0.0, 1.0, 2.0, 3.0] for at in range(8)]


def items():
    return [
        {
            "kind": "list",
            "ranks": [1.0, 2.0, 3.0, 4.0],
            "group": f"fault {at // 2}" if at < 4 else None,
            "prompt_number": at,
            "answer_numbers": range(4 * at, 4 * at + 4),
        }
        for at in range(8)
    ]


def test_training_and_eval_rm_give_the_same_interval_of_the_same_scores():
    found = HeldOut.of(items(), [np.array(scores) for scores in LISTS]).calibration
    groups = ["fault 0", "fault 0", "fault 1", "fault 1", *(f"prompt {at}" for at in range(4, 8))]
    examples = [{"ranks": [1, 2, 3, 4], "scores": scores, "group": group} for scores, group in zip(LISTS, groups)]
    told = ranking(examples, seed=5)
    assert found.pairs == 48 and found.groups == told["accuracy"]["groups"] == 6
    assert found.accuracy == told["accuracy"]["value"] == 0.75
    assert (found.accuracy_low, found.accuracy_high) == (told["accuracy"]["low"], told["accuracy"]["high"])
    assert told["calibration"]["accuracy_low"] == found.accuracy_low
    assert found.ranked == f"75.0 % [{100 * found.accuracy_low:.1f}, {100 * found.accuracy_high:.1f}] ranked right"


def test_comparisons_of_one_list_are_no_independent_ones():
    margins = [one for scores in LISTS for one in [scores[0] - scores[-1]] * 6]
    together, alone = calibrate(margins, np.repeat(range(8), 6).tolist()), calibrate(margins)
    assert together.accuracy == alone.accuracy == 0.75 and (together.groups, alone.groups) == (8, 48)
    widths = [one.accuracy_high - one.accuracy_low for one in (together, alone)]
    assert widths[0] > 2 * widths[1]
    # one confidence, so one bin, which holds all of it
    assert together.bins[0]["accuracy_low"] == pytest.approx(together.accuracy_low)


def test_few_groups_give_no_interval_and_can_be_drawn(tmp_path):
    found = calibrate([1.0, 0.0, -1.0, 2.0] * 3, ["a", "b", "c", "d"] * 3)
    assert found.accuracy_low is None and found.accuracy_high is None and found.ranked == "62.5 % ranked right"
    assert all(one["accuracy_low"] is None for one in found.bins)
    pytest.importorskip("matplotlib")
    plot_calibration(found, tmp_path / "c.png", "model")
    assert (tmp_path / "c.png").stat().st_size > 10_000
