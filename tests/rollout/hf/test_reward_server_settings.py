"""A reward model on the rollout hf: what a run is given, what is refused before Ray starts, what Ray must hold."""

import json

import pytest
from omegaconf import OmegaConf
from prepared import composed

from verl_aiops.platform import cluster
from verl_aiops.platform.cluster import ClusterError, check_cluster, gpus_needed, logical_cpus_needed
from verl_aiops.rollout.hf.limits import check_reward_server
from verl_aiops.trainers.preflight.defaults import apply_defaults
from verl_aiops.trainers.preflight.defaults_rl import REWARD_MODEL_DEFAULTS

RM = "reward.reward_model"
GPUS, CPUS = "ray_kwargs.ray_init.num_gpus", "ray_kwargs.ray_init.num_cpus"
CONFIG = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "x"}, "max_position_embeddings": 100}


@pytest.fixture
def on(monkeypatch):
    """on(device): what verl finds; a machine of 64 cores without a Ray cluster."""
    from verl.utils import device

    monkeypatch.setattr(cluster, "existing_ray_address", lambda: None)
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 64)
    return lambda name: monkeypatch.setattr(device, "get_device_name", lambda: name)


def reward_run(**reward_model):
    """A configuration with a reward model and the defaults that it is given; the lines that are shown."""
    overrides = [f"{RM}.{key}={value}" for key, value in {"enable": True, **reward_model}.items()]
    config = composed(*overrides)
    return config, apply_defaults(config, {o.split("=")[0] for o in overrides}, REWARD_MODEL_DEFAULTS)


@pytest.fixture
def folder(tmp_path):
    """folder(**changes): a reward model's folder whose config.json says so."""

    def write(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        return tmp_path

    return write


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_on_cpu_a_reward_model_is_served_by_hf_in_float32(on, folder):
    on("cpu")
    config, lines = reward_run(model_path=folder())
    rollout = config.reward.reward_model.rollout
    assert (rollout.name, rollout.tensor_model_parallel_size, rollout.dtype) == ("hf", 1, "float32")
    # it shares the trainer's devices, and verl sizes that pool itself
    assert rollout.free_cache_engine is True and len(lines) == 3
    assert check_reward_server(config) == []


def test_a_pool_of_its_own_has_one_server_that_never_sleeps(on, folder):
    on("cpu")
    config, lines = reward_run(model_path=folder(), enable_resource_pool=True)
    model = config.reward.reward_model
    assert (model.n_gpus_per_node, model.nnodes, model.rollout.free_cache_engine) == (1, 1, False)
    assert any(line.startswith(f"{RM}.rollout.free_cache_engine=False") for line in lines)
    assert check_reward_server(config) == []


def test_what_the_user_says_stays(on):
    on("cpu")
    said = {"n_gpus_per_node": 8, "nnodes": 2, "rollout.dtype": "bfloat16", "rollout.name": "vllm"}
    config, lines = reward_run(enable_resource_pool=True, **said)
    for key, value in said.items():
        assert OmegaConf.select(config, f"{RM}.{key}") == value
    # the parallel size of another server is the user's to say
    assert len(lines) == 1 and "free_cache_engine=False" in lines[0]
    assert config.reward.reward_model.rollout.tensor_model_parallel_size == 2
    assert check_reward_server(config) == []


def test_without_a_reward_model_nothing_is_set_or_refused(on):
    on("cpu")
    config = composed()
    before = OmegaConf.to_container(config.reward)
    assert apply_defaults(config, set(), REWARD_MODEL_DEFAULTS) == []
    assert OmegaConf.to_container(config.reward) == before
    assert check_reward_server(config) == []


def test_on_an_accelerator_only_what_hf_needs_is_set(on):
    on("cuda")
    assert reward_run()[1] == []
    config, lines = reward_run(**{"rollout.name": "hf"})
    assert [line.split("=")[0] for line in lines] == [f"{RM}.rollout.tensor_model_parallel_size"]
    assert config.reward.reward_model.rollout.dtype == "bfloat16"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"rollout.tensor_model_parallel_size": 2}, "tensor_model_parallel_size=2"),
        ({"rollout.data_parallel_size": 2}, "data_parallel_size=2"),
        ({"rollout.pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size=2"),
        ({"rollout.quantization": "fp8"}, "quantization=fp8"),
        ({"rollout.disaggregation.enabled": True}, "disaggregation.enabled"),
        ({"rollout.disable_log_stats": False}, "disable_log_stats"),
        ({"rollout.skip_tokenizer_init": True}, "skip_tokenizer_init=True"),
        ({"rollout.max_model_len": 101}, "the model has 100 positions"),
        ({"model_path": "null"}, "model_path is not set"),
        ({"model_path": "/no/such/folder"}, "/no/such/folder: no such folder"),
        ({"model_path": "./missing"}, "./missing: no such folder"),
        ({"enable_resource_pool": True, "n_gpus_per_node": 0}, "n_gpus_per_node=0"),
        ({"enable_resource_pool": True, "nnodes": 0}, "nnodes=0"),
    ],
)
def test_settings_that_cannot_be_served_are_named(on, folder, changes, named):
    on("cpu")
    config, _ = reward_run(**{"model_path": folder(), **changes})
    (sentence,) = check_reward_server(config)
    assert named in sentence and f"{RM}." in sentence


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM, which has no score head"),
        ({"architectures": None}, "no score head"),
        ({"id2label": {"0": "a", "1": "b"}}, "it has 2 labels"),
        ({"id2label": None}, "it has 2 labels"),
        ({"id2label": None, "num_labels": 5}, "it has 5 labels"),
        ({"quantization_config": {"quant_method": "gptq"}}, "its weights are quantised"),
    ],
)
def test_models_that_cannot_be_served_are_named(on, folder, changes, named):
    on("cpu")
    (sentence,) = check_reward_server(reward_run(model_path=folder(**changes))[0])
    assert named in sentence


def test_folders_that_are_no_model_are_named(on, tmp_path):
    on("cpu")
    faults = lambda: check_reward_server(reward_run(model_path=tmp_path)[0])  # noqa: E731
    assert "has no config.json" in faults()[0]
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "an adapter alone" in faults()[0]
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in faults()[0]
    (tmp_path / "config.json").write_text("[]")
    assert "expected an object (found JSON of type list)" in faults()[0]


def test_labels_as_transformers_writes_them_are_read(on, tmp_path):
    from transformers import LlamaConfig

    on("cpu")
    for labels, faults in ((1, 0), (2, 1), (3, 1)):
        LlamaConfig(num_labels=labels, architectures=["LlamaForSequenceClassification"]).save_pretrained(tmp_path)
        assert len(check_reward_server(reward_run(model_path=tmp_path)[0])) == faults, labels


def test_models_elsewhere_are_verls_to_fetch(on):
    on("cpu")
    for path in ("owner/model", "gpt2", "hdfs://cluster/a/b/model"):
        assert check_reward_server(reward_run(model_path=path)[0]) == [], path


def test_the_replica_refuses_what_the_check_refuses(on, folder):
    on("cpu")
    from verl.workers.rollout.replica import get_rollout_replica_class

    replica = get_rollout_replica_class("hf")
    config, _ = reward_run(model_path=folder(), **{"rollout.tensor_model_parallel_size": 2})
    with pytest.raises(NotImplementedError, match="reward.reward_model.rollout.tensor_model_parallel_size=2"):
        replica(0, config.reward.reward_model.rollout, None, 2, is_reward_model=True)
    config, _ = reward_run(model_path=folder())
    with pytest.raises(NotImplementedError, match="no teacher model"):
        replica(0, config.reward.reward_model.rollout, None, 1, is_teacher_model=True)


# --- what Ray must hold -----------------------------------------------------------------------------------------------


def test_a_colocated_reward_model_needs_no_gpu_of_its_own(on):
    on("cpu")
    config, _ = reward_run()
    config.trainer.n_gpus_per_node = 2
    assert gpus_needed(config) == 2
    check_cluster(config, set(), "cpu")
    assert OmegaConf.select(config, GPUS) == 2


def test_a_pool_of_its_own_is_counted(on):
    on("cpu")
    config, _ = reward_run(enable_resource_pool=True, n_gpus_per_node=2, nnodes=2)
    alone = composed()
    for one in (config, alone):
        one.trainer.n_gpus_per_node = 1
    assert gpus_needed(config) == 1 + 4
    assert logical_cpus_needed(config) == logical_cpus_needed(alone) + 3 * 4
    check_cluster(config, set(), "cpu")
    assert OmegaConf.select(config, GPUS) == 5


def test_the_presets_gpus_are_raised_and_the_users_checked(on):
    """The preset counts the trainer's workers."""
    on("cpu")
    config = composed("+verl_aiops=[grpo_mturn,cpu]", f"{RM}.enable=True", f"{RM}.enable_resource_pool=True")
    apply_defaults(config, set(), REWARD_MODEL_DEFAULTS)
    assert OmegaConf.select(config, GPUS) == 1
    assert f"{GPUS}=2" in check_cluster(config, set(), "cpu")
    OmegaConf.update(config, GPUS, 1)
    with pytest.raises(ClusterError, match=f"{GPUS}=1, but 2 workers are asked for .*reward.reward_model"):
        check_cluster(config, {GPUS}, "cpu")
