"""Which engine GRPO, PPO and their kin get, why, and what of a run stays verl's."""

import json
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from prepared import MATHS, TRIAGE, composed, given, prepare_online, prepare_triage
from tiny import make_tiny_model

from verl_aiops import missing
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight import backend, entry
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.common import is_triage_run
from verl_aiops.trainers.preflight.defaults_rl import has_critic

ACTOR, MODEL, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
KEY, CRITIC = "algorithm.logprob_backend", "algorithm.critic_backend"


@pytest.fixture
def device(monkeypatch):
    """device(name): the platform that verl finds; a CPU at first."""
    from verl.utils import device as verls

    from verl_aiops.platform import cluster

    def of(name):
        monkeypatch.setattr(verls, "get_device_name", lambda: name)

    monkeypatch.setattr(cluster, "existing_ray_address", lambda: None)
    of("cpu")
    return of


@pytest.fixture
def files(tmp_path):
    def write(row, name="rows"):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist([row] * 64), path)
        return [f"data.{key}_files={path}" for key in ("train", "val")]

    return write


@pytest.fixture
def triage(tiny_model_dir, files, device):
    """triage(*settings) -> the configuration of a run on triage data, and its lines about engines and micro-batches."""

    def prepare(*settings, preset="[grpo_mturn,cpu]"):
        command = [*files(TRIAGE), f"{MODEL}.path={tiny_model_dir}", f"+verl_aiops={preset}", *settings]
        config = composed(*command)
        lines = prepare_triage(config, given(command))
        return config, [
            line for line in lines if "_backend" in line or "bsz" in line or "micro_batch" in line or "torn" in line
        ]

    return prepare


@pytest.fixture
def other_task(tiny_model_dir, files, device, monkeypatch):
    """other_task(*settings) -> what main_ppo's check makes of a run of verl's own, and what it prints."""
    device("cuda")

    def check(*settings):
        command = [
            *files(MATHS),
            f"{MODEL}.path={tiny_model_dir}",
            "algorithm.adv_estimator=grpo",
            f"{ROLLOUT}.name=sglang",
            f"{ROLLOUT}.n=8",
            f"{ACTOR}.ppo_micro_batch_size_per_gpu=8",
            *settings,
        ]
        monkeypatch.setattr(entry, "user_keys", lambda: given(command))
        config = composed(*command)
        reached = []
        entry.with_preflight(lambda **arguments: reached.append(arguments))(config, True, False)
        assert len(reached) == 1 and not is_triage_run(config)
        check.before = composed(*command)
        return config

    return check


def changed(before, after):
    """Keys whose values differ."""

    def flat(value, path=""):
        if isinstance(value, dict):
            return {k: v for name, inner in value.items() for k, v in flat(inner, f"{path}.{name}").items()}
        return {path[1:]: value}

    before, after = (flat(OmegaConf.to_container(config, resolve=True)) for config in (before, after))
    return {key for key in before | after if before.get(key) != after.get(key)}


# --- the decision ----------------------------------------------------------------------------------------------------


def test_the_presets_share_prompts_and_say_so(triage):
    config, lines = triage()
    assert lines[0] == f"{KEY}=shared_prompt (each prompt goes through the model once)"
    assert config.algorithm.logprob_backend == "shared_prompt"
    assert config.actor_rollout_ref.model.model_type == "shared_prompt_language_model"
    assert OmegaConf.select(config, CRITIC) is None
    assert triage(preset="[dr_grpo,cpu]")[0].algorithm.logprob_backend == "shared_prompt"


def test_a_critic_is_decided_on_by_its_own_model(triage, tmp_path):
    config, lines = triage(preset="[ppo_mturn,cpu]")
    assert (config.algorithm.logprob_backend, config.algorithm.critic_backend) == ("shared_prompt", "shared_prompt")
    assert f"{CRITIC}=shared_prompt (each prompt goes through the model once)" in lines
    for changes, why in (
        ({"model_type": "gpt2"}, "the head for values of models of type 'gpt2' is not transformers' general one"),
        ({"attention_dropout": 0.1}, "the model trains with attention_dropout=0.1"),
    ):
        folder = make_tiny_model(tmp_path / next(iter(changes)))
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))
        config, lines = triage(f"critic.model.path={folder}", preset="[ppo_mturn,cpu]")
        assert (config.algorithm.logprob_backend, config.algorithm.critic_backend) == ("shared_prompt", "stock")
        assert f"{CRITIC}=stock (shared_prompt is not possible: {why})" in lines


@pytest.mark.parametrize(
    "setting, why",
    [
        ("critic.model.use_liger=True", "critic.model.use_liger=True replaces the model's forward pass"),
        (
            "critic.ulysses_sequence_parallel_size=3",
            "its 4 heads of attention cannot be shared out over 3 workers",
        ),
        ("critic.strategy=torchtitan", "critic.strategy=torchtitan, and its engine is FSDP's"),
    ],
)
def test_what_keeps_the_critic_alone_from_sharing(triage, setting, why):
    config, lines = triage(setting, preset="[ppo_mturn,cpu]")
    assert (config.algorithm.logprob_backend, config.algorithm.critic_backend) == ("shared_prompt", "stock")
    assert f"{CRITIC}=stock (shared_prompt is not possible: {why})" in lines


def test_a_critic_without_transformers_general_head_is_verls(monkeypatch):
    config = OmegaConf.create({"critic": {"model": {"trust_remote_code": False}}})

    def of(kind):
        monkeypatch.setattr(
            backend.transformers.AutoConfig,
            "from_pretrained",
            lambda path, **_: OmegaConf.create({"model_type": kind}),
        )
        return backend._without_head(config, "folder")

    assert of("llama") is None and of("qwen2") is None
    assert of("cwm") == "transformers has no head for values of models of type 'cwm'"
    assert of("gpt_neox") == "the head for values of models of type 'gpt_neox' is not transformers' general one"


AGAINST = {
    f"{ACTOR}.ulysses_sequence_parallel_size=3": "cannot be shared out over 3 workers",
    f"{MODEL}.use_liger=True": "use_liger=True",
    f"{MODEL}.use_fused_kernels=True": "use_fused_kernels=True",
    f"+{ACTOR}.fsdp_config.mixed_precision={{param_dtype:fp32}}": "half precision, and mixed_precision",
    f"{ACTOR}.strategy=torchtitan": f"{ACTOR}.strategy=torchtitan, and its engine is FSDP's",
    "model_engine=megatron": f"{ACTOR}.strategy=megatron, and its engine is FSDP's",
    "distillation.enabled=True": "distillation.enabled=True: a teacher",
    f"+{ACTOR}.router_replay.mode=R2": f"{ACTOR}.router_replay.mode=R2: experts",
    f"+{ACTOR}.fsdp_config.router_replay.mode=R3": f"{ACTOR}.fsdp_config.router_replay.mode=R3: experts",
    f"{MODEL}.mtp.enable=True": "mtp.enable=True: heads",
    f"{ACTOR}.fsdp_config.qat.enable=True": "qat.enable=True: weights are rounded",
    "trainer.use_v1=False": "trainer.use_v1=False is verl's legacy trainer",
    f"+{MODEL}.model_type=language_model": f"{MODEL}.model_type=language_model is set",
}


@pytest.mark.parametrize("setting, why", AGAINST.items())
def test_what_keeps_a_run_from_sharing_is_said(other_task, capsys, setting, why):
    """`auto` leaves the run to verl; by name it is refused, in one line."""
    config = other_task(setting, "+verl_aiops=shared_prompt")
    said = capsys.readouterr().out
    assert f"{KEY}=stock (shared_prompt is not possible: " in said and why in said
    assert config.algorithm.logprob_backend == "stock" and config.trainer.v1.trainer_mode == "sync"
    assert OmegaConf.select(config, f"{MODEL}.model_type") in (None, "language_model")
    with pytest.raises(SystemExit) as end:
        other_task(setting, f"+{KEY}=shared_prompt")
    assert end.value.code.startswith(f"verl-aiops: error: {KEY}=shared_prompt: ") and why in end.value.code
    assert end.value.code.endswith("Set it to stock or auto.") and "\n" not in end.value.code


def test_images_keep_a_run_from_sharing(other_task, files, capsys):
    assert other_task("+verl_aiops=shared_prompt").algorithm.logprob_backend == "shared_prompt"
    with_images = files({**MATHS, "images": [{"image": "a.png"}]}, "with_images")
    config = other_task(*with_images, "+verl_aiops=shared_prompt")
    assert config.algorithm.logprob_backend == "stock" and "have images or videos" in capsys.readouterr().out
    without = files({**MATHS, "images": [], "videos": None}, "without")
    assert other_task(*without, "+verl_aiops=shared_prompt").algorithm.logprob_backend == "shared_prompt"


def test_models_that_were_not_compared_keep_verls_engine(other_task, tmp_path, capsys):
    folder = make_tiny_model(tmp_path / "gpt2")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "gpt2"}))
    config = other_task(f"{MODEL}.path={folder}", "+verl_aiops=shared_prompt")
    assert config.algorithm.logprob_backend == "stock"
    assert "models of type 'gpt2' have not been compared" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["engine shared_prompt_language_model", "micro-batches as planned"])
def test_what_could_not_be_put_into_verl_is_a_reason(other_task, monkeypatch, capsys, name):
    monkeypatch.setitem(missing.MISSING, name, "ImportError: x")
    assert other_task("+verl_aiops=shared_prompt").algorithm.logprob_backend == "stock"
    assert f"could not put {name} into verl" in capsys.readouterr().out


@pytest.mark.parametrize(
    "setting, said",
    [
        (f"{KEY}=rows", f"{KEY}='rows': expected one of auto, shared_prompt, stock, or null."),
        (f"+{KEY.replace('backend', 'backnd')}=auto", "did you mean 'logprob_backend'?"),
        (f"+{CRITIC}=stock", f"{CRITIC}: follows from {KEY}"),
    ],
)
def test_wrong_values_and_names_are_told_once(triage, other_task, device, setting, said):
    with pytest.raises(SystemExit) as end:
        other_task("+verl_aiops=shared_prompt", setting)
    assert end.value.code.count(said) == 1 and "\n" not in end.value.code
    device("cpu")
    with pytest.raises(ConfigError) as error:
        triage(setting)
    assert str(error.value).count(said) == 1 and "\n" not in str(error.value)


# --- what stays verl's ----------------------------------------------------------------------------------------------


OWN_REWARD = ("reward.custom_reward_function.path=reward.py", "reward.custom_reward_function.name=score")


@pytest.mark.parametrize("settings", [(), OWN_REWARD, (f"+{KEY}=stock",), (f"+{KEY}=null",)])
def test_without_the_key_or_with_stock_verls_run_is_verls(other_task, settings, capsys, monkeypatch):
    # nor does it need anything of ours
    monkeypatch.setattr(entry, "check_available", lambda *_, **__: pytest.fail("a run of ours"))
    after = other_task(*settings)
    assert changed(other_task.before, after) == set()
    assert after.trainer.v1.trainer_mode == "sync" and OmegaConf.select(after, f"{MODEL}.model_type") is None
    assert capsys.readouterr().out == ""


def test_without_the_key_a_triage_run_is_what_it_was(triage):
    without, lines = triage(f"{KEY}=null")
    assert OmegaConf.select(without, f"{MODEL}.model_type") is None and not any("backend" in line for line in lines)
    assert without.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == 8
    stock, _ = triage(f"{KEY}=stock")
    assert changed(without, stock) == {KEY}
    ours, _ = triage()
    assert changed(stock, ours) == {KEY, f"{MODEL}.model_type"}


def test_a_run_of_another_task_gets_engine_and_trainer_and_nothing_else(other_task, capsys):
    stock, ours = other_task(), other_task("+verl_aiops=shared_prompt")
    without_flash_attn = {f"{where}.use_remove_padding" for where in (ACTOR, MODEL)}
    without_flash_attn.add(f"{MODEL}.override_config.attn_implementation")
    engine_and_trainer = {KEY, f"{MODEL}.model_type", "trainer.v1.trainer_mode"}
    assert changed(stock, ours) - without_flash_attn == engine_and_trainer
    assert ours.trainer.v1.trainer_mode == "aiops_sync"
    said = capsys.readouterr().out
    assert said.count(f"{KEY}=shared_prompt (each prompt goes through the model once)") == 1


def test_verl_alone_says_that_there_is_no_critic(other_task):
    config = other_task()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not has_critic(config)


def test_of_other_trainers_the_engine_alone_is_ours(other_task):
    config = other_task("+verl_aiops=shared_prompt", "trainer.v1.trainer_mode=separate_async")
    assert config.trainer.v1.trainer_mode == "separate_async"
    assert config.actor_rollout_ref.model.model_type == "shared_prompt_language_model"


def test_without_our_trainer_the_engine_alone_is_ours(other_task, monkeypatch):
    monkeypatch.setitem(missing.MISSING, "trainer mode aiops_sync", "ImportError: x")
    config = other_task("+verl_aiops=shared_prompt")
    assert config.trainer.v1.trainer_mode == "sync" and config.algorithm.logprob_backend == "shared_prompt"


def test_the_critic_of_another_trainer_is_verls(other_task, capsys):
    critic = ("algorithm.adv_estimator=gae", "critic.ppo_micro_batch_size_per_gpu=8")
    config = other_task("+verl_aiops=shared_prompt", *critic, "trainer.v1.trainer_mode=separate_async")
    assert config.algorithm.critic_backend == "stock"
    assert "trainer.v1.trainer_mode=separate_async makes the critic itself" in capsys.readouterr().out


def test_dpo_keeps_to_its_own_key(tiny_model_dir, files, device):
    command = [*files(TRIAGE), f"{MODEL}.path={tiny_model_dir}", f"{ROLLOUT}.n=4"]
    for preset in ("[online_dpo,cpu]", "[grpo_mturn,cpu]", "[online_dpo,cpu,shared_prompt]"):
        kl = ("algorithm.adv_estimator=online_dpo", f"{ACTOR}.use_kl_loss=False")
        config = composed(*command, f"+verl_aiops={preset}", *kl)
        lines = prepare_online(config, given(command))
        assert config.actor_rollout_ref.model.model_type == "preference_language_model", preset
        assert config.algorithm.logprob_backend != "shared_prompt" and not any(KEY in line for line in lines)
    command += [f"+{KEY}=shared_prompt", "data.train_batch_size=4"]
    config = composed(*command, "algorithm.adv_estimator=online_dpo")
    with pytest.raises(ConfigError, match=f"^{KEY}: for GRPO and PPO. Here it is algorithm.online_dpo.logprob_backend"):
        prepare_online(config, given(command))


@pytest.mark.parametrize("kind", ["dpo", "online_dpo"])
def test_the_key_of_a_preference_run_may_be_given(kind):
    """A section's key may be called like one of ours, or nearly so."""
    run = Run(kind, {f"algorithm.{kind}.logprob_backend", f"algorithm.{kind}.comparisons", "algorithm.adv_estimator"})
    assert backend.check_not_ours(OmegaConf.create(), run) == []
    run.given.add(KEY)
    assert len(backend.check_not_ours(OmegaConf.create(), run)) == 1


# --- micro-batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, rows", [(2, 8), (3, 6), (4, 8), (8, 8), (16, 16)])
def test_a_micro_batch_holds_whole_groups(triage, n, rows):
    config, _ = triage(f"{ROLLOUT}.n={n}")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert not actor.use_dynamic_bsz and actor.ppo_micro_batch_size_per_gpu == rows
    assert rollout.log_prob_micro_batch_size_per_gpu == config.actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu
    assert rollout.log_prob_micro_batch_size_per_gpu == rows


def test_on_a_gpu_micro_batches_are_filled_where_activations_are_recomputed(triage, device):
    device("cuda")
    config, lines = triage(preset="grpo_mturn")
    actor = config.actor_rollout_ref.actor
    assert actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu == 16384
    assert actor.ppo_micro_batch_size_per_gpu is None
    assert any(line.startswith(f"{ACTOR}.use_dynamic_bsz=True  (shared prompts") for line in lines)
    for setting, size in (
        (f"{MODEL}.enable_gradient_checkpointing=False", 8),
        (f"{ACTOR}.use_dynamic_bsz=False", 8),
        (f"{ACTOR}.ppo_micro_batch_size_per_gpu=16", 16),
    ):
        config, _ = triage(setting, preset="grpo_mturn")
        assert not config.actor_rollout_ref.actor.use_dynamic_bsz, setting
        assert config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == size, setting
    config, _ = triage(f"{KEY}=stock", preset="grpo_mturn")
    assert not config.actor_rollout_ref.actor.use_dynamic_bsz


def test_a_limit_that_tears_every_group_is_told(triage):
    _, lines = triage(f"{ACTOR}.ppo_micro_batch_size_per_gpu=3")
    (said,) = (line for line in lines if line.startswith("warning: "))
    assert f"{ROLLOUT}.n=8: each prompt goes through the model 3 times" in said
    for settings in ((f"{ACTOR}.ppo_micro_batch_size_per_gpu=8",), (f"{KEY}=stock", f"{ACTOR}.use_dynamic_bsz=True")):
        assert not any(line.startswith("warning: ") for line in triage(*settings)[1])


def test_mini_batches_drawn_from_all_rows_are_told_to_tear_prompts(triage):
    shuffle = f"{ACTOR}.shuffle=True"
    _, lines = triage(shuffle, f"{ACTOR}.ppo_mini_batch_size=16")
    (said,) = (line for line in lines if line.startswith("warning: "))
    assert "shuffle=True draws rows into 4 mini-batches" in said
    for settings in ((shuffle,), (f"{ACTOR}.ppo_mini_batch_size=16",), (shuffle, f"{KEY}=stock")):
        assert not any(line.startswith("warning: ") for line in triage(*settings)[1])
