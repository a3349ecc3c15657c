"""The warning about chosen answers that lose likelihood: said once, and only where it is true."""

import numpy as np
import pytest

from verl_aiops.trainers.dpo.likelihood_displacement import ChosenWatch

STEPS = 40
FALLING = np.linspace(-0.1, -2.0, STEPS)
RISING = np.linspace(0.1, 2.0, STEPS)


def _warnings(chosen, margins, *, has_sft_term=False, block=5, blocks=4):
    watch = ChosenWatch(has_sft_term=has_sft_term, block=block, blocks=blocks)
    said = [(step, watch.see(float(c), float(m))) for step, (c, m) in enumerate(zip(chosen, margins, strict=True), 1)]
    return [(step, text) for step, text in said if text]


def test_it_speaks_once_as_soon_as_enough_steps_show_it():
    (step, text), *more = _warnings(FALLING, RISING)
    assert step == 20 and not more
    assert "algorithm.dpo.loss_type=[sigmoid,sft]" in text
    # means of the first and of the fourth block of 5
    assert f"{FALLING[:5].mean():.3f} -> {FALLING[15:20].mean():.3f}" in text
    assert f"{RISING[:5].mean():.3f} -> {RISING[15:20].mean():.3f}" in text
    assert "20 steps" in text


def test_single_steps_may_rise_as_long_as_the_means_fall():
    noise = np.where(np.arange(STEPS) % 2, 0.4, -0.4)
    assert np.diff(FALLING + noise).max() > 0
    assert len(_warnings(FALLING + noise, RISING - noise, block=10, blocks=4)) == 1


def test_a_fall_that_starts_late_is_seen_when_it_has_lasted_long_enough():
    chosen = np.concatenate([np.linspace(0.0, 0.5, STEPS), FALLING])
    margins = np.concatenate([RISING, RISING + 2.0])
    (step, _), *more = _warnings(chosen, margins)
    assert step == STEPS + 15 and not more  # the block before the fall and three blocks of it


@pytest.mark.parametrize(
    "chosen, margins",
    [
        pytest.param(RISING, RISING, id="chosen rewards rise"),
        pytest.param(FALLING, -RISING, id="margins fall too: that is not this failure"),
        pytest.param(RISING[::-1], RISING, id="chosen rewards fall but are above the reference"),
        pytest.param(np.full(STEPS, -1.0), RISING, id="chosen rewards low but steady"),
        pytest.param(FALLING[:19], RISING[:19], id="too few steps"),
        pytest.param(np.tile([-1.0] * 5 + [-0.5] * 5, 4), RISING, id="up and down"),
    ],
)
def test_it_is_quiet(chosen, margins):
    assert _warnings(chosen, margins) == []


def test_it_is_quiet_when_the_loss_has_an_sft_term():
    assert _warnings(FALLING, RISING, has_sft_term=True) == []


def test_a_warning_takes_eighty_steps_by_default():
    steps = 200
    chosen, margins = np.linspace(-0.1, -9, steps), np.linspace(0, 9, steps)
    watch = ChosenWatch(has_sft_term=False)
    said = [step for step in range(steps) if watch.see(chosen[step], margins[step])]
    assert said == [79]
