"""What runs on triage data are given and refused before Ray starts."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from prepared import TRIAGE as ROW
from prepared import composed, given, prepare_triage

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.common import first_rows, is_triage_run, refuse_ignored_keys
from verl_aiops.trainers.preflight.defaults_rl import ONLINE_DEFAULTS, RL_DEFAULTS, TRIAGE_DEFAULTS

# of the lines that a run prints, those that depend on the batch, the optimizer or the models
DEPENDS = {"ppo_micro_batch_size_per_gpu", "log_prob_micro_batch_size_per_gpu", "override_optimizer_config"}
DEPENDS |= {"logprob_backend", "critic_backend"}


@pytest.fixture
def data(tmp_path):
    def write(**changes):
        path = tmp_path / "rl.parquet"
        pq.write_table(pa.Table.from_pylist([{**ROW, **changes}] * 64), path)
        return str(path)

    return write


@pytest.fixture
def on_cpu(monkeypatch):
    from verl.utils import device

    monkeypatch.setattr(device, "get_device_name", lambda: "cpu")


@pytest.fixture
def prepare(tiny_model_dir, data, on_cpu):
    """prepare_triage on ``main_ppo`` with these overrides; the configuration and the lines that are shown."""

    def run(*overrides, preset="[grpo_mturn,cpu]", file=None):
        everything = [
            *([f"+verl_aiops={preset}"] if preset else []),
            f"data.train_files={file or data()}",
            f"data.val_files={file or data()}",
            f"actor_rollout_ref.model.path={tiny_model_dir}",
            *overrides,
        ]
        config = composed(*everything)
        assert is_triage_run(config)
        return config, prepare_triage(config, given(everything))

    return run


def test_presets_are_complete(prepare):
    """The presets leave nothing that a default has to fill, but what depends on batch, optimizer and models."""
    for preset in ("[grpo_mturn,cpu]", "[dr_grpo,cpu]", "[ppo_mturn,cpu]"):
        config, lines = prepare(preset=preset)
        keys = {line.split("=")[0].split(".")[-1] for line in lines}
        assert keys <= DEPENDS, preset
        assert config.trainer.v1.trainer_mode == "aiops_sync"
    assert config.algorithm.adv_estimator == "gae" and config.critic.strategy == "fsdp2"


def test_dr_grpo_divides_by_nothing_that_depends_on_the_answers(prepare):
    config, _ = prepare(preset="[dr_grpo,cpu]")
    actor = config.actor_rollout_ref.actor
    assert not config.algorithm.norm_adv_by_std_in_grpo and not actor.use_kl_loss
    assert actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor == 384


def test_without_presets_data_model_reward_and_batch_size_are_enough(prepare, tiny_model_dir):
    """On a CPU; verl accepts what comes out."""
    config, lines = prepare(
        "algorithm.adv_estimator=grpo", "data.train_batch_size=4", "actor_rollout_ref.rollout.n=4", preset=None
    )
    assert config.actor_rollout_ref.rollout.name == "hf"
    assert config.reward.reward_manager.name == "aiops_mturn"
    shown = {line.split("=")[0] for line in lines}
    assert {"actor_rollout_ref.rollout.name", "reward.reward_manager.name", "reward.num_workers"} <= shown
    from verl.utils.config import validate_config

    validate_config.__wrapped__(config=config, use_reference_policy=False, use_critic=False)


def test_on_a_gpu_the_platforms_defaults_stay(prepare, monkeypatch):
    from verl.utils import device

    monkeypatch.setattr(device, "get_device_name", lambda: "cuda")
    config, _ = prepare(preset="grpo_mturn")
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.name, rollout.dtype, rollout.agent.num_workers) == ("sglang", "bfloat16", 8)
    assert config.actor_rollout_ref.actor.strategy == "fsdp" and config.trainer.n_gpus_per_node == 8
    with pytest.raises(ConfigError, match="actor_rollout_ref.rollout.name is not set"):
        prepare("algorithm.adv_estimator=grpo", preset=None)


def test_the_defaults_replaced_are_still_verls():
    config = composed("actor_rollout_ref.rollout.name=sglang")
    for default in (*TRIAGE_DEFAULTS, *RL_DEFAULTS, *ONLINE_DEFAULTS):
        value = OmegaConf.select(config, default.key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if default.key != "actor_rollout_ref.rollout.name":
            assert value == default.verls, default.key


@pytest.mark.parametrize(
    "overrides, ours",
    [
        ((), False),
        (("reward.custom_reward_function.path=pkg://verl_aiops.rewards.aiops_mturn",), True),
        (("reward.custom_reward_function.path=examples/reward_score/aiops_mturn.py",), True),
        (("reward.custom_reward_function.path=my_reward.py",), False),
        (("custom_reward_function.path=examples/reward_score/aiops_mturn.py",), True),
        (("reward.reward_manager.name=aiops_mturn",), True),
        (("actor_rollout_ref.rollout.agent.default_agent_loop=aiops_mturn",), True),
        (("actor_rollout_ref.rollout.name=hf",), True),
    ],
)
def test_which_runs_are_ours(overrides, ours):
    assert is_triage_run(composed(*overrides)) is ours


def test_the_data_can_choose_the_loop(data):
    assert is_triage_run(composed(f"data.train_files={data()}"))
    assert is_triage_run(composed(f"data.train_files=[{data()}]"))
    assert not is_triage_run(composed(f"data.train_files={data(agent_name='single_turn_agent')}"))


@pytest.mark.parametrize(
    "setting, today",
    [
        ("custom_reward_function.path=x.py", "use reward.custom_reward_function.path"),
        ("reward_model.enable=True", "use reward.reward_model"),
        ("reward_model.model.path=x", "use reward.reward_model"),
        ("reward_model.reward_manager=dapo", "use reward.reward_model"),
        ("sandbox_fusion.url=x", "use reward.sandbox_fusion.url"),
        ("actor_rollout_ref.rollout.multi_turn.enable=True", "default_agent_loop=aiops_mturn"),
    ],
)
def test_old_keys_that_verl_ignores_are_refused(prepare, setting, today):
    with pytest.raises(ConfigError, match=today.replace(".", r"\.")) as error:
        prepare(setting)
    assert setting.split("=")[0] in str(error.value)


def test_old_keys_are_refused_for_offline_dpo_too_and_named_together():
    config = composed("custom_reward_function.path=a", "custom_reward_function.name=b")
    with pytest.raises(ConfigError) as error:
        refuse_ignored_keys(config)
    assert "custom_reward_function.path" in str(error.value) and "custom_reward_function.name" in str(error.value)
    refuse_ignored_keys(composed())


@pytest.mark.parametrize(
    "setting, said",
    [
        ("actor_rollout_ref.rollout.tensor_model_parallel_size=2", "tensor_model_parallel_size=2"),
        ("actor_rollout_ref.model.lora_rank=8", "lora.merge=True"),
        ("trainer.v1.trainer_mode=separate_async", "Use sync"),
        ("actor_rollout_ref.rollout.n=1", "Set 2 or more"),
        ("+reward.custom_reward_function.reward_kwargs.format_weight=9", "reward_kwargs"),
        ("+reward.custom_reward_function.reward_kwargs.fromat_weight=0.1", "reward_kwargs"),
        ("data.max_response_length=60", "row i-1 (and 127 more of 128 rows): data.max_response_length=60"),
        ("actor_rollout_ref.rollout.custom.aiops_mturn.round_tokens=[400,40]", "Raise data.max_response_length"),
        ("+actor_rollout_ref.rollout.custom.aiops_mturn.round_token=[40]", "did you mean round_tokens"),
        ("actor_rollout_ref.rollout.custom.aiops_mturn.json_schema=True", "no constrained decoding"),
    ],
)
def test_what_cannot_work_is_refused_naming_the_key(prepare, setting, said):
    with pytest.raises(ConfigError) as error:
        prepare(setting)
    assert said in str(error.value)


def test_the_longest_instructions_of_all_rows_must_fit(prepare, tmp_path):
    rows = [
        {**ROW, "extra_info": {**ROW["extra_info"], "id": f"i-{n}", "rounds": ["Now JSON." + " one more" * (n // 98)]}}
        for n in range(100)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mixed.parquet")
    with pytest.raises(ConfigError, match=r"row i-9[89] \(and 3 more of 200 rows\).* to (\d+) or more") as error:
        prepare("data.max_response_length=88", file=str(tmp_path / "mixed.parquet"))
    enough = re.search(r" to (\d+) or more", str(error.value)).group(1)
    prepare(f"data.max_response_length={enough}", file=str(tmp_path / "mixed.parquet"))


def test_json_schema_with_sglang_needs_its_tokenizer(prepare, monkeypatch):
    settings = (
        "actor_rollout_ref.rollout.name=sglang",
        "actor_rollout_ref.rollout.custom.aiops_mturn.json_schema=True",
    )
    with pytest.raises(ConfigError, match="skip_tokenizer_init=False"):
        prepare(*settings)
    prepare(*settings, "actor_rollout_ref.rollout.skip_tokenizer_init=False")


def test_a_run_without_a_reward_is_refused(prepare):
    with pytest.raises(ConfigError, match="no reward"):
        prepare(
            "algorithm.adv_estimator=grpo",
            "actor_rollout_ref.rollout.n=4",
            "reward.reward_manager.name=dapo",
            preset=None,
        )


def test_rows_that_cannot_be_scored_are_refused(prepare, data):
    file = data(reward_model={"style": "rule", "ground_truth": '{"service": "a"}'})
    for preset in ("[grpo_mturn,cpu]", "[online_dpo,cpu]"):
        with pytest.raises(ConfigError, match="(?s)128 of 128 rows.*incident_type: expected a non-empty str"):
            prepare(preset=preset, file=file)


def test_another_reward_keeps_its_manager(prepare, tmp_path):
    reward = tmp_path / "mine.py"
    reward.write_text("def compute_score(**kwargs): return 0.0")
    config, _ = prepare(
        "algorithm.adv_estimator=grpo",
        "data.train_batch_size=4",
        "actor_rollout_ref.rollout.n=4",
        f"reward.custom_reward_function.path={reward}",
        preset=None,
    )
    assert config.reward.reward_manager.name == "naive"


def test_files_that_cannot_be_read_are_left_to_verl(tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_text("no parquet")
    assert not is_triage_run(composed(f"data.train_files={broken}"))
    assert not is_triage_run(composed(f"data.train_files={tmp_path / 'absent.parquet'}"))
    assert first_rows(composed(f"data.train_files={broken}"), 3) == []


# --- a reward model beside the rule ----------------------------------------------------------------------------------


@pytest.fixture
def reward_model(tiny_model_dir, tmp_path):
    from tiny import make_tiny_classifier

    return str(make_tiny_classifier(tmp_path / "rm", tiny_model_dir))


def with_rm(folder, *more):
    return [f"reward.reward_model.model_path={folder}", *more]


def test_a_combined_reward_is_completed(prepare, reward_model):
    unnamed = "reward.custom_reward_function.path=null"
    config, lines = prepare(*with_rm(reward_model, unnamed), preset="[grpo_mturn,combined,cpu]")
    assert config.reward.custom_reward_function.path == "pkg://verl_aiops.rewards.aiops_mturn"
    assert config.reward.reward_model.rollout.name == "hf"
    assert config.reward.reward_model.rollout.tensor_model_parallel_size == 1
    assert config.reward.reward_model.rollout.dtype == "float32"
    assert config.trainer.v1.trainer_mode == "aiops_sync"
    assert any("verl calls a reward manager beside a reward model only where one is named" in line for line in lines)


def test_a_function_of_the_users_stays(prepare, reward_model):
    path = "reward.custom_reward_function.path=mine.py"
    config, _ = prepare(*with_rm(reward_model, path), preset="[grpo_mturn,combined,cpu]")
    assert config.reward.custom_reward_function.path == "mine.py"


def test_other_data_needs_a_rule_or_rm_only(prepare, reward_model, data):
    unnamed = "reward.custom_reward_function.path=null"
    plain = {"agent_name": "single_turn_agent", "extra_info": {"index": 0}}
    other = data(data_source="somebody/else", **plain)
    with pytest.raises(ConfigError, match="no rule for data_source=somebody/else"):
        prepare(*with_rm(reward_model, unnamed), preset="[grpo_mturn,combined,cpu]", file=other)
    alone = with_rm(reward_model, unnamed, "reward.combined.mode=rm_only")
    config, _ = prepare(*alone, preset="[grpo_mturn,combined,cpu]", file=other)
    assert config.reward.custom_reward_function.name == "no_rule"
    maths = data(data_source="openai/gsm8k", **plain)
    config, _ = prepare(*with_rm(reward_model, unnamed), preset="[grpo_mturn,combined,cpu]", file=maths)
    assert config.reward.custom_reward_function.name == "default_compute_score"


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["reward.combined.mode=best"], "reward.combined.mode=best: expected one of"),
        (["+reward.combined.rule_wieght=1"], "reward.combined.rule_wieght: no such setting, did you mean rule_weight"),
        (["reward.reward_model.enable=False"], "mode=weighted needs a reward model: set reward.reward_model.enable"),
        (["reward.reward_model.model_path=null"], "reward.reward_model.model_path is not set"),
        (["reward.reward_model.model_path=/no/such/folder"], "its tokenizer cannot be loaded"),
        (["reward.combined.normalise=stored"], "normalise=stored: no .*reward_stats.json"),
        (["reward.reward_model.rollout.name=trtllm"], "rollout.name=trtllm: expected one of vllm, hf, sglang"),
        (
            ["reward.reward_model.enable_resource_pool=True", "reward.reward_model.rollout.free_cache_engine=True"],
            "Set free_cache_engine to False",
        ),
        (["reward.reward_model.rollout.max_model_len=100"], "the reward model takes 100 tokens .*less than"),
    ],
)
def test_what_cannot_be_combined_is_said_before_ray_starts(prepare, reward_model, overrides, said):
    with pytest.raises(ConfigError, match=said):
        prepare(*with_rm(reward_model, *overrides), preset="[grpo_mturn,combined,cpu]")


def test_a_reward_model_that_verl_would_use_instead_of_the_rule_is_refused(prepare, reward_model):
    enabled = with_rm(reward_model, "reward.reward_model.enable=True")
    with pytest.raises(ConfigError, match="would never ask the reward model"):
        prepare(*enabled)
    with pytest.raises(ConfigError, match="verl would score with the reward model alone"):
        prepare(*enabled, "reward.custom_reward_function.path=null")


def test_verls_own_scoring_in_a_pool_of_its_own_is_refused(prepare, reward_model, data):
    plain = data(data_source="x", agent_name="single_turn_agent", extra_info={"index": 0})
    options = ["reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True"]
    options += ["reward.reward_manager.name=naive", "reward.custom_reward_function.path=null"]
    engine = "reward.reward_model.rollout.name="
    with pytest.raises(ConfigError, match="KeyError: 'reward_extra_info'"):
        prepare(*with_rm(reward_model, *options, f"{engine}sglang"), preset="[cpu]", file=plain)
    with pytest.raises(ConfigError, match="rollout.name=hf: verl itself asks vLLM and SGLang only"):
        prepare(*with_rm(reward_model, *options, f"{engine}hf"), preset="[cpu]", file=plain)


@pytest.mark.parametrize("preset", ["grpo_mturn", "dr_grpo", "ppo_mturn", "[grpo_mturn,shared_prompt]"])
def test_presets_run_on_vllm_as_on_sglang(prepare, monkeypatch, preset):
    """Complete, accepted by our checks and by verl's own, and otherwise the same."""
    import importlib.util

    from verl.utils import device
    from verl.utils.config import validate_config

    real = importlib.util.find_spec
    monkeypatch.setattr(device, "get_device_name", lambda: "cuda")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: object() if name == "vllm" else real(name, *rest)
    )
    found = {}
    for engine in ("sglang", "vllm"):
        config, _ = prepare(f"actor_rollout_ref.rollout.name={engine}", preset=preset)
        assert config.actor_rollout_ref.rollout.name == engine
        validate_config.__wrapped__(config=config, use_reference_policy=False, use_critic=preset == "ppo_mturn")
        config.actor_rollout_ref.rollout.name = None
        found[engine] = OmegaConf.to_container(config, resolve=True)
    assert found["vllm"] == found["sglang"]
