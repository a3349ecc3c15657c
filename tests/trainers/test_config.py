"""The settings under algorithm.dpo: one dataclass, the same defaults in the preset, nothing wrong gets through."""

import dataclasses
import inspect

import pytest
from omegaconf import OmegaConf
from prepared import composed

from verl_aiops.losses import compute_dpo_loss, validate_loss_args
from verl_aiops.trainers.config import ConfigError, DPOConfig, OnlineDPOConfig, nearest

DEFAULTS = {field.name: field.default for field in dataclasses.fields(DPOConfig)}


def _config(**dpo):
    return OmegaConf.create({"algorithm": {"adv_estimator": "dpo", "dpo": dpo}})


def test_without_a_section_the_defaults_hold():
    assert DPOConfig.from_config(OmegaConf.create({"algorithm": {"adv_estimator": "dpo"}})) == DPOConfig()
    assert DPOConfig.from_config(OmegaConf.create({"algorithm": {"dpo": None}})) == DPOConfig()
    assert DPOConfig.from_config({}) == DPOConfig()


def test_loss_settings_are_the_loss_functions_own():
    """Same names and defaults, none left out: a knob of the loss that no setting reaches would be dead."""
    own = set(inspect.signature(validate_loss_args).parameters)
    assert set(DPOConfig().loss_settings()) == own
    parameters = inspect.signature(compute_dpo_loss).parameters
    for name, value in DPOConfig().loss_settings().items():
        assert parameters[name].default == value, name


def test_settings_reach_the_loss():
    given = {"beta": 0.3, "loss_type": ["sigmoid", "dpop"], "loss_weights": [1.0, 0.5], "label_smoothing": 0.1}
    given |= {"sft_weight": 0.2, "dpop_lambda": 5.0}
    settings = DPOConfig.from_config(_config(**given)).loss_settings()
    assert {name: settings[name] for name in given} == given
    assert DPOConfig.from_config(_config(loss_type="simpo", simpo_gamma=1.5)).loss_settings()["simpo_gamma"] == 1.5


def test_lists_and_interpolations_become_plain_values():
    config = _config(loss_type=["sigmoid", "sft"], loss_weights=[1, "${algorithm.dpo.beta}"], beta=0.25)
    dpo = DPOConfig.from_config(config)
    assert type(dpo.loss_type) is list and type(dpo.loss_weights) is list
    assert (dpo.loss_type, dpo.loss_weights) == (["sigmoid", "sft"], [1, 0.25])


def test_a_reference_is_used_where_the_loss_compares_with_one():
    assert DPOConfig().uses_reference
    assert DPOConfig.from_config(_config(loss_type=["simpo", "sigmoid"])).uses_reference
    assert not DPOConfig.from_config(_config(loss_type=["simpo", "sft"])).uses_reference


@pytest.mark.parametrize(
    "given, said",
    [
        ({"betta": 0.2}, "algorithm.dpo.betta: no such setting (did you mean 'beta'?)"),
        ({"reference_sync_step": 5}, "(did you mean 'reference_sync_steps'?)"),
        ({"zzz": 1}, "algorithm.dpo.zzz: no such setting. Known: beta, loss_type,"),
        ({"beta": 0.0}, "algorithm.dpo: beta must be > 0"),
        ({"beta": -1}, "beta must be > 0"),
        ({"beta": "0.1x"}, "beta must be > 0"),
        ({"beta": None}, "beta must be > 0"),
        ({"loss_type": "sigmoyd"}, "unknown loss_type 'sigmoyd' (did you mean 'sigmoid'?)"),
        ({"loss_type": "dpo"}, "(did you mean 'sigmoid'?)"),
        ({"loss_type": []}, "loss_type is an empty list"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 values for 2 losses"),
        ({"loss_weights": 0.5}, "algorithm.dpo.loss_weights=0.5: expected a list"),
        ({"label_smoothing": 0.7}, "label_smoothing must be in [0, 0.5]"),
        ({"simpo_gamma": 1.0}, "simpo_gamma=1.0 has no effect"),
        ({"f_divergence_type": "kl"}, "unknown f_divergence_type 'kl'"),
        ({"ld_alpha": 1.5}, "algorithm.dpo.ld_alpha=1.5"),
        ({"ld_alpha": "half"}, "algorithm.dpo.ld_alpha='half'"),
        ({"reference": "frozen"}, "algorithm.dpo.reference='frozen': expected 'cached' or 'live'"),
        ({"logprob_backend": "fast"}, "algorithm.dpo.logprob_backend='fast'"),
        ({"reference_verify_pairs": -1}, "algorithm.dpo.reference_verify_pairs=-1"),
        ({"preflight_rows": 1.5}, "algorithm.dpo.preflight_rows=1.5: expected a whole number"),
        ({"reference_sync_steps": True}, "algorithm.dpo.reference_sync_steps=True"),
        ({"reference_sync_steps": 8}, "Set algorithm.dpo.reference=live"),
        ({"reference_mixup": 0.0}, "algorithm.dpo.reference_mixup=0.0"),
        ({"reference_mixup": 1.1}, "algorithm.dpo.reference_mixup=1.1"),
        ({"reference_mixup": 0.5, "reference": "live"}, "has no effect without algorithm.dpo.reference_sync_steps"),
        ({"reference_mixup": "all"}, "algorithm.dpo.reference_mixup='all'"),
        ({"reference": "live", "reference_path": "m"}, "algorithm.dpo.reference_path works with"),
        ({"comparisons": "some"}, "algorithm.dpo.comparisons='some': expected one of all, best, adjacent"),
        ({"comparisons": "best", "loss_type": "listwise"}, "comparisons=best is about pairs, and algorithm.dpo.loss"),
        ({"gap_weight": 1}, "algorithm.dpo.gap_weight=1: expected true or false"),
        ({"gap_weight": True, "loss_type": "kto"}, "loss_type=kto is no loss of pairs. Remove gap_weight"),
        (
            {"gap_weight": True, "loss_type": ["sigmoid", "aot"]},
            "sorts all pairs of a mini-batch together, where a weight",
        ),
        ({"yes_from_score": 0.5}, "algorithm.dpo.loss_type=sigmoid takes as pairs"),
        ({"yes_from_score": 0.5, "loss_type": "plackett_luce"}, "loss_type=plackett_luce takes as lists"),
        (
            {"yes_from_score": 0.5, "loss_type": ["sigmoid", "kto"]},
            "takes as pairs. Remove it, or use losses of single",
        ),
        ({"yes_from_score": "high", "loss_type": "kto"}, "algorithm.dpo.yes_from_score='high': expected a number"),
        ({"ld_alpha": 0.5, "loss_type": "kto"}, "algorithm.dpo.ld_alpha=0.5 shortens the longer answer of a pair"),
        ({"loss_type": ["sigmoid", "plackett_luce"]}, "plackett_luce takes a group of answers as one list"),
        ({"desirable_weight": 2.0}, "desirable_weight=2.0 has no effect"),
        ({"score_margin": -1.0}, "score_margin must be >= 0"),
    ],
)
def test_what_cannot_work_is_a_config_error_that_names_the_key(given, said):
    with pytest.raises(ConfigError) as error:
        DPOConfig.from_config(_config(**given))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"reference": "live", "reference_sync_steps": 8, "reference_mixup": 0.6},
        {"reference_path": "some/model"},
        {"ld_alpha": 0.0},
        {"ld_alpha": 1},
        {"preflight_rows": 0, "reference_verify_pairs": 0},
        {"comparisons": "adjacent", "gap_weight": True, "score_margin": 0.5},
        {"loss_type": "kto", "yes_from_score": 0, "desirable_weight": 1.3, "undesirable_weight": 0.7},
        {"loss_type": ["sigmoid", "kto"], "loss_weights": [1.0, 0.5], "ld_alpha": 0.5, "comparisons": "best"},
        {"loss_type": ["listwise", "plackett_luce"], "score_temperature": 0.1},
    ],
)
def test_what_works_is_let_through(given):
    dpo = DPOConfig.from_config(_config(**given))
    assert {name: getattr(dpo, name) for name in given} == given


@pytest.mark.parametrize("loss_type", ["kto", "listwise", ["sigmoid", "bco"]])
def test_online_dpo_takes_losses_of_pairs_alone(loss_type):
    with pytest.raises(ConfigError, match=r"algorithm.online_dpo.loss_type=.*online DPO makes pairs of the answers"):
        OnlineDPOConfig.from_config({"loss_type": loss_type})


def test_self_play_has_no_scores_for_a_margin():
    with pytest.raises(ConfigError, match=r"online_dpo.score_margin=0.5 asks .* Remove score_margin"):
        OnlineDPOConfig.from_config({"rule": "self_play", "score_margin": 0.5})
    assert OnlineDPOConfig.from_config({"score_margin": 0.5}).score_margin == 0.5


def test_settings_cannot_change_after_they_were_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DPOConfig().beta = -1.0


def test_nearest_says_nothing_where_nothing_is_near():
    assert nearest("qqqq", ["beta", "loss_type"]) == ""


# --- presets -------------------------------------------------------------------------------------------------------


def test_the_dpo_preset_holds_every_default_of_the_dataclass():
    config = composed("+verl_aiops=dpo", "data.train_batch_size=48")
    assert OmegaConf.to_container(config.algorithm.dpo) == DEFAULTS
    assert config.algorithm.adv_estimator == "dpo"
    assert config.actor_rollout_ref.actor.ppo_mini_batch_size == 48
    assert config.trainer.total_epochs == 1
    assert config.actor_rollout_ref.actor.optim.weight_decay == 0.0


def test_presets_combine_and_their_keys_are_overridden_without_a_plus():
    config = composed(
        "+verl_aiops=[dpo,cpu]",
        "algorithm.dpo.beta=0.5",
        "algorithm.dpo.loss_type=[sigmoid,sft]",
        "trainer.n_gpus_per_node=2",
    )
    dpo = DPOConfig.from_config(config)
    assert (dpo.beta, dpo.loss_type) == (0.5, ["sigmoid", "sft"])
    assert config.ray_kwargs.ray_init.num_gpus == 2
    assert config.ray_kwargs.ray_init.num_cpus == 16
    assert config.trainer.device == "cpu"
    actor = config.actor_rollout_ref.actor
    assert actor.strategy == "fsdp2"
    assert set(actor.fsdp_config.mixed_precision.values()) == {"fp32"}
    assert config.transfer_queue.backend.SimpleStorage.num_data_storage_units == 1


def test_the_cpu_preset_alone_chooses_no_trainer():
    config = composed("+verl_aiops=cpu")
    assert "dpo" not in config.algorithm
    assert (config.algorithm.adv_estimator, config.trainer.v1.trainer_mode) == ("gae", "sync")
