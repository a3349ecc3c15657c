"""Settings of reward models, and what the check before Ray refuses of a run."""

import json

import pytest
from prepared import composed

from verl_aiops.data import PreferenceDataError
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight import entry
from verl_aiops.trainers.rm.config import RewardModelConfig


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"loss_type": "bradley_tery"}, "did you mean 'bradley_terry'"),
        ({"loss_type": ["bradley_terry", "plackett_luce"]}, "as pairs or as one list"),
        ({"loss_type": []}, "expected one loss or several"),
        ({"loss_type": ["binary", "binary"]}, "each once"),
        ({"loss_weights": [1.0, 2.0]}, "expected 1 numbers"),
        ({"loss_type": "regression", "score_margin": 1.0}, "score_margin=1.0 is about pairs"),
        ({"loss_type": "plackett_luce", "label_smoothing": 0.1}, "has no effect"),
        ({"loss_type": "plackett_luce", "yes_from_score": 1.0}, "which algorithm.rm.loss_type=plackett_luce takes as"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5: expected"),
        ({"center_reward": 0.1}, "did you mean 'center_rewards'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        RewardModelConfig.from_section(settings)


def test_pairs_and_labels_may_be_summed():
    settings = RewardModelConfig.from_section({"loss_type": ["bradley_terry", "binary"], "loss_weights": [1, 0.5]})
    assert settings.kinds == ("pair", "single")
    assert settings.loss_settings()["losses"] == {"bradley_terry": 1, "binary": 0.5}


@pytest.fixture
def checked(tiny_model_dir, tmp_path, monkeypatch):
    """checked(*settings) -> the configuration after the check before Ray."""
    pairs = tmp_path / "pairs.jsonl"
    rows = ({"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(12))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("verl_aiops.trainers.runs.ending.install", lambda: None)

    def run(*settings):
        command = ["algorithm.adv_estimator=rm", f"data.train_files={pairs}", "data.train_batch_size=4"]
        command += [f"actor_rollout_ref.model.path={tiny_model_dir}", f"trainer.default_local_dir={tmp_path}/o"]
        monkeypatch.setattr(entry, "user_keys", lambda: {key.split("=")[0].lstrip("+~") for key in command})
        config = composed(*command, *settings)
        entry.with_preflight(lambda **given: None)(config, False, False)
        return config

    return run


def test_a_run_is_completed_and_shares_prompts(checked):
    config = checked()
    assert config.algorithm.adv_estimator == config.trainer.v1.trainer_mode == "rm"
    assert config.actor_rollout_ref.model.model_type == "reward_model"
    assert config.algorithm.rm.logprob_backend == "shared_prompt"


@pytest.mark.parametrize(
    "setting, said",
    [
        ("actor_rollout_ref.model.use_liger=True", "use_liger=True replaces"),
        ("actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", "that of one token"),
        ("actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]", "names hf_model"),
        ("+data.apply_chat_template_kwargs.enable_thinking=False", "servers render conversations without them"),
        ("data.truncation=left", "whole conversations"),
        ("trainer.v1.trainer_mode=colocate_async", "has no rollouts to run asynchronously"),
        ("+algorithm.rm.loss_type=regression", "needs the score of every answer"),
        ("+algorithm.rm.score_margin=1", "no pair has scores"),
        ("+algorithm.rm.betta=1", "no such setting"),
    ],
)
def test_what_a_reward_model_cannot_do_is_told_before_ray(checked, setting, said):
    with pytest.raises(SystemExit) as end:
        checked(setting)
    assert said in str(end.value.code)


def test_a_list_without_scores_is_named(tokenizer, write_rows):
    from verl_aiops.data import PreferenceDataset

    two = [{"completion": "no", "rank": 2}, {"completion": "yes", "rank": 1}]
    rows = [{"id": "unrated", "prompt": "a?", "completions": two}]
    lengths = {"max_prompt_length": 64, "max_response_length": 64, "progress": False}
    data = PreferenceDataset(write_rows(rows), tokenizer, kinds=["list"], scored=True, **lengths)
    with pytest.raises(PreferenceDataError, match="1 of 1 lists lack some .first: unrated"):
        RewardModelConfig(loss_type="regression").check_data(data, "data.train_files")
    RewardModelConfig(loss_type="plackett_luce").check_data(data, "data.train_files")
