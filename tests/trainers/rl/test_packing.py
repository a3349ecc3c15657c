"""GRPO and PPO on models that carry a state along a sequence: their rows are padded, not packed."""

import pytest
from omegaconf import OmegaConf
from tiny_lms import tiny_config

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.rl.packing import KEY, pad_where_packing_leaks


@pytest.fixture
def run(tmp_path):
    """A configuration whose model is of that kind, as verl packs it unless told otherwise."""

    def make(kind, *, packed=True, strategy="fsdp2", **settings):
        tiny_config(kind, **settings).save_pretrained(tmp_path)
        model = {"path": str(tmp_path), "use_remove_padding": packed, "trust_remote_code": False}
        return OmegaConf.create({"actor_rollout_ref": {"model": model, "actor": {"strategy": strategy}}})

    return make


RECURRENT = ("lfm2", {"layer_types": ["conv", "full_attention"]})


@pytest.mark.parametrize("kind, settings", [RECURRENT, ("mamba", {"state_size": 8})])
def test_rows_of_recurrent_models_are_padded_and_that_is_said(run, kind, settings):
    config = run(kind, **settings)
    (line,) = pad_where_packing_leaks(config, set())
    assert line.startswith(f"{KEY}=False") and kind in line
    assert config.actor_rollout_ref.model.use_remove_padding is False


def test_packing_them_by_name_is_refused(run):
    kind, settings = RECURRENT
    with pytest.raises(ConfigError, match=rf"{KEY}=True: models of type {kind} carry a state"):
        pad_where_packing_leaks(run(kind, **settings), {KEY})


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_other_models_stay_packed(run, kind):
    config = run(kind)
    assert pad_where_packing_leaks(config, set()) == [] and config.actor_rollout_ref.model.use_remove_padding


@pytest.mark.parametrize("how", [{"packed": False}, {"strategy": "megatron"}])
def test_nothing_is_done_where_nothing_is_packed_by_these_engines(run, how):
    kind, settings = RECURRENT
    config = run(kind, **settings, **how)
    before = OmegaConf.to_container(config)
    assert pad_where_packing_leaks(config, {KEY}) == [] and OmegaConf.to_container(config) == before
