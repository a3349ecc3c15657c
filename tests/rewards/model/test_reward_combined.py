"""The formulas that join a rule and a reward model, the shaping of scores, and the settings that are refused."""

import asyncio
import json
import math
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from verl_aiops.rewards.model.combined import MODES, CombinedSettings, combine, no_rule
from verl_aiops.rewards.model.running_stats import ACTOR, MomentsReader, RunningSums
from verl_aiops.rewards.model.transform import Moments, Shaping, read_stats

UNIT = st.floats(0, 1)
SCORE = st.floats(-1e6, 1e6)


def settings(**given):
    return CombinedSettings.from_config(given)


@given(rule=UNIT, rm=UNIT, ok=st.booleans())
def test_each_mode_is_its_formula(rule, rm, ok):
    weights = {"rule_weight": 3.0, "rm_weight": 1.0}
    assert combine(settings(mode="rule_only"), rule, rm, ok) == rule
    assert combine(settings(mode="rm_only"), rule, rm, ok) == rm
    assert combine(settings(mode="weighted", **weights), rule, rm, ok) == pytest.approx(0.75 * rule + 0.25 * rm)
    gated = combine(settings(mode="gated", **weights), rule, rm, ok)
    assert gated == pytest.approx(0.75 * rule + 0.25 * (rm if ok else 0))
    tie = combine(settings(mode="rm_tiebreak", tiebreak_step=0.01), rule, rm, ok)
    assert rule <= tie < rule + 0.01 + 1e-12


@given(rules=st.tuples(UNIT, UNIT), rms=st.tuples(UNIT, UNIT))
def test_a_tiebreak_never_overrules_a_step(rules, rms):
    worse, better = sorted(rules)
    assume(better - worse >= 0.05)
    tie = settings(mode="rm_tiebreak", tiebreak_step=0.05)
    assert combine(tie, better, rms[0], True) > combine(tie, worse, rms[1], True)


@given(rule=UNIT, rms=st.tuples(UNIT, UNIT))
def test_a_tiebreak_always_decides_a_tie(rule, rms):
    lower, higher = sorted(rms)
    assume(higher - lower > 1e-9)
    tie = settings(mode="rm_tiebreak", tiebreak_step=0.05)
    assert combine(tie, rule, higher, True) > combine(tie, rule, lower, True)


@pytest.mark.parametrize("squash, clip", [("sigmoid", None), ("tanh", None), ("raw", [-2, 3])])
def test_a_saturated_score_does_not_reach_the_next_step(squash, clip):
    """At the upper bound itself, too, an answer stays below one whose rule is a step better."""
    tie = settings(mode="rm_tiebreak", tiebreak_step=0.0625, squash=squash, clip=clip)
    most, least = (tie.shaping.shape(raw, Moments()) for raw in (1e9, -1e9))
    assert most == tie.shaping.bounds[1] and least == pytest.approx(tie.shaping.bounds[0])
    assert combine(tie, 0.5, most, True) < combine(tie, 0.5625, least, True) == 0.5625
    assert combine(tie, 0.5, most, True) == pytest.approx(0.5625, abs=1e-6)


@given(rm=SCORE, closed=SCORE)
def test_no_reward_model_lifts_a_malformed_answer_over_the_same_rule_score(rm, closed):
    """Where scores can be negative too, a gate that counted 0 would pay for being malformed."""
    gated = settings(mode="gated", squash="tanh")
    shaped = [gated.shaping.shape(x, Moments()) for x in (rm, closed)]
    assert combine(gated, 0.3, shaped[1], False) <= combine(gated, 0.3, shaped[0], True)


@pytest.mark.parametrize("mode", MODES)
def test_without_a_score_of_the_reward_model_only_the_rule_stands(mode):
    result = combine(settings(mode=mode), 0.5, math.nan, True)
    assert result == 0.5 if mode == "rule_only" else math.isnan(result)


def test_no_rule_gives_zero():
    assert no_rule("any", "text", None, {}) == {"score": 0.0}


# --- shaping ---------------------------------------------------------------------------------------------------------


@given(raw=SCORE)
def test_shaping_is_normalise_shift_scale_squash_clip(raw):
    moments = Moments(2.0, 4.0, 10)
    x = ((raw - 2) / 4 - 0.5) / 3
    assert Shaping("raw", 3.0, 0.5).shape(raw, moments) == pytest.approx(x)
    assert Shaping("tanh", 3.0, 0.5).shape(raw, moments) == pytest.approx(math.tanh(x))
    expected = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    assert Shaping("sigmoid", 3.0, 0.5).shape(raw, moments) == pytest.approx(expected, abs=1e-12)
    assert Shaping("raw", 3.0, 0.5, (-1.0, 2.0)).shape(raw, moments) == pytest.approx(min(max(x, -1), 2))


@given(raw=st.floats(allow_nan=False), squash=st.sampled_from(["raw", "sigmoid", "tanh"]))
def test_no_score_overflows_or_leaves_the_bounds(raw, squash):
    shaping = Shaping(squash, 0.5, 0.0, (-3.0, 0.75))
    low, high = shaping.bounds
    assert low <= shaping.shape(raw, Moments()) <= high
    assert (low, high) == {"raw": (-3.0, 0.75), "sigmoid": (0.0, 0.75), "tanh": (-1.0, 0.75)}[squash]


def test_the_threshold_is_the_middle():
    assert Shaping("sigmoid", 2.0, 1.5).shape(1.5, Moments()) == 0.5
    assert Shaping("tanh", 2.0, 1.5).shape(1.5, Moments()) == 0.0
    assert math.isnan(Shaping().shape(math.nan, Moments()))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50), st.integers(1, 49))
def test_running_moments_are_those_of_all_scores(scores, cut):
    sums = RunningSums()
    sums.add(scores[:cut])
    sums.add([*scores[cut:], math.nan, math.inf])
    moments = sums.moments()
    assert moments.count == len(scores)
    assert moments.mean == pytest.approx(statistics.fmean(scores), abs=1e-9)
    deviation = statistics.pstdev(scores)
    assert moments.std == pytest.approx(deviation if deviation > 1e-3 else moments.std, rel=1e-3)
    assert moments.std > 0


class Board:
    """Stands for the Ray actor: counts how often it is asked."""

    def __init__(self, moments):
        self.moments, self.asked, self.read = moments, 0, self

    def remote(self):
        async def answer():
            return self.moments

        self.asked += 1
        return answer()


def test_running_moments_are_asked_for_once_a_step(monkeypatch):
    """So all answers of a step are shifted and scaled alike, whatever the trainer writes meanwhile."""
    import ray

    board = Board(None)
    monkeypatch.setattr(ray, "get_actor", lambda name: {ACTOR: board}[name])
    reader = MomentsReader(Moments(0.5, 3.0), running=True)
    at = lambda step: asyncio.run(reader.at(step))  # noqa: E731
    assert [at(1), at(1), at(1)] == [Moments(0.5, 3.0)] * 3 and board.asked == 1
    board.moments = Moments(1.0, 2.0, 8)
    assert at(1) == Moments(0.5, 3.0) and board.asked == 1
    assert [at(2), at(2)] == [Moments(1.0, 2.0, 8)] * 2 and board.asked == 2
    fixed = MomentsReader(Moments(0.5, 3.0), running=False)
    assert asyncio.run(fixed.at(1)) == asyncio.run(fixed.at(2)) == Moments(0.5, 3.0) and board.asked == 2


def test_too_few_or_equal_scores_have_no_scale():
    assert RunningSums().moments() is None
    one = RunningSums()
    one.add([3.0])
    assert one.moments() is None
    one.add([3.0, 3.0])
    assert one.moments() == Moments(3.0, 1.0, 3)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, said",
    [
        ({"mod": "gated"}, "reward.combined.mod: no such setting, did you mean mode?"),
        ({"mode": "sum"}, "reward.combined.mode=sum: expected one of rule_only, rm_only, weighted, gated, rm_tiebreak"),
        ({"squash": "relu"}, "reward.combined.squash=relu: expected one of raw, sigmoid, tanh"),
        ({"rule_weight": -1}, "reward.combined.rule_weight=-1: expected a number, 0 or more"),
        ({"rule_weight": 0, "rm_weight": 0}, "both 0"),
        ({"temperature": 0}, "reward.combined.temperature=0: expected a number above 0"),
        ({"temperature": "hot"}, "reward.combined.temperature=hot: expected a number above 0"),
        ({"attempts": 0}, "reward.combined.attempts=0: expected a whole number, 1 or more"),
        ({"concurrency": True}, "reward.combined.concurrency=True: expected a whole number"),
        ({"clip": [1, 0]}, r"reward.combined.clip=\[1, 0\]: expected \[low,high\]"),
        ({"clip": 3}, r"reward.combined.clip=3: expected \[low,high\]"),
        ({"mode": "gated", "squash": "raw"}, "mode=gated: an answer that the gate shuts out"),
        ({"mode": "rm_tiebreak", "squash": "raw"}, "mode=rm_tiebreak needs bounded scores"),
        ({"rm_mean": 1.0}, "rm_mean and .rm_std belong together"),
        ({"rm_mean": 1.0, "rm_std": 0}, "reward.combined.rm_std=0: expected a number above 0"),
        ({"max_failed_share": 2}, "reward.combined.max_failed_share=2: expected a share from 0 to 1"),
        ({"on_failure": "zero"}, "reward.combined.on_failure=zero: expected one of fail, drop"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        settings(**given)


def test_clipping_makes_raw_scores_bounded():
    assert settings(mode="gated", squash="raw", clip=[-2, 2]).shaping.bounds == (-2, 2)


def test_the_preset_holds_the_defaults():
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["+verl_aiops=[grpo_mturn,combined]"])
    section = OmegaConf.to_container(config.reward.combined)
    assert CombinedSettings.from_config(section) == CombinedSettings()
    assert list(section) == [f for f in CombinedSettings.__dataclass_fields__ if f != "shaping"]


def test_stored_moments_come_from_the_settings_or_the_models_folder(tmp_path):
    stored = settings(normalise="stored")
    with pytest.raises(ValueError, match="normalise=stored: no .*reward_stats.json; train the model with"):
        stored.first_moments(str(tmp_path))
    file = tmp_path / "reward_stats.json"
    for text in ("[]", "{}", '{"reward_mean": 1, "reward_std": 0}', '{"reward_mean": NaN, "reward_std": 1}', "no"):
        file.write_text(text)
        with pytest.raises(ValueError, match="reward.combined.normalise=stored"):
            read_stats(str(tmp_path))
    file.write_text(json.dumps({"reward_mean": 1.5, "reward_std": 2.0, "pairs": 8}))
    assert stored.first_moments(str(tmp_path)) == Moments(1.5, 2.0, 16)
    assert settings(normalise="stored", rm_mean=0.5, rm_std=3).first_moments(None) == Moments(0.5, 3.0)
    assert settings(normalise="running").first_moments(str(tmp_path)) == Moments()
    assert settings(rm_mean=0.5, rm_std=3).first_moments(None) == Moments()
