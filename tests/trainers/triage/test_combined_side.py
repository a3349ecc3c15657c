"""The trainer's side of `aiops_combined`: what it allows, and what it keeps with a run."""

import pytest
from omegaconf import OmegaConf

from verl_aiops.trainers.rl.reward_side import REWARD_SIDES, RewardSide
from verl_aiops.trainers.triage import combined_side
from verl_aiops.trainers.triage.combined_side import CombinedSide

RUNNING = {"mode": "weighted", "normalise": "running"}


class Store:
    def __init__(self, there=True):
        self.seen, self.saved, self.there = [], [], there

    def add(self, scores):
        self.seen.append(list(scores))

    def save(self, folder):
        self.saved.append(folder)

    def load(self, folder):
        return self.there


def side(monkeypatch, store=None, **combined):
    """As the trainer makes it, after its set-up."""
    monkeypatch.setattr(combined_side, "MomentsStore", lambda: store)
    made = REWARD_SIDES["aiops_combined"](OmegaConf.create({"reward": {"combined": combined}}))
    assert isinstance(made, CombinedSide) and made.decides_on_failures and made.asks_colocated_model
    made.start()
    return made


def test_the_scores_of_the_reward_model_are_kept_with_the_run(monkeypatch, tmp_path):
    store = Store()
    running = side(monkeypatch, store, **RUNNING)
    running.see([{"rm_raw": 1.5, "score": 0.0}, {"rm_raw": -1.0, "score": 0.0}])
    running.save(str(tmp_path / "global_step_1"))
    running.load(str(tmp_path))
    assert store.seen == [[1.5, -1.0]] and store.saved == [str(tmp_path / "global_step_1")]
    assert (tmp_path / "global_step_1").is_dir()
    with pytest.raises(ValueError, match="holds no running mean .* trained without reward.combined.normalise=running"):
        side(monkeypatch, Store(there=False), **RUNNING).load("folder")


@pytest.mark.parametrize("combined", [{"mode": "rule_only"}, {"mode": "weighted"}])
def test_without_a_running_mean_nothing_is_kept(monkeypatch, tmp_path, combined):
    still = side(monkeypatch, store="nobody asks for one", **combined)
    still.see([{"score": 0.0}])
    still.save(str(tmp_path / "none"))
    still.load(str(tmp_path))
    assert not (tmp_path / "none").exists()


def test_failures_are_allowed_where_they_are_dropped(monkeypatch):
    strict = side(monkeypatch, mode="rule_only", max_failed_share=0.25)
    assert strict.failures_allowed == 0.0 and "on_failure=drop leaves such answers out" in strict.advice()
    lenient = side(monkeypatch, mode="rule_only", on_failure="drop", max_failed_share=0.25)
    assert lenient.failures_allowed == 0.25 and "max_failed_share=0.25 allows" in lenient.advice()


def test_other_managers_want_nothing_of_the_trainer(tmp_path):
    plain = RewardSide()
    plain.start(), plain.see([{"score": 1.0}]), plain.save(str(tmp_path)), plain.load(str(tmp_path))
    assert (plain.failures_allowed, plain.decides_on_failures, plain.asks_colocated_model) == (0.0, False, False)
    assert not list(tmp_path.iterdir()) and plain.advice().startswith("Mend the reward")
    assert "aiops_mturn" not in REWARD_SIDES
