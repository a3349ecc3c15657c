"""What happens to a run's configuration before Ray starts: defaults where the user said nothing, one clear error."""

import copy
import json
import sys

import pytest
from omegaconf import OmegaConf, open_dict
from prepared import prepare_offline

from verl_aiops.platform.cluster import ClusterError
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight import basics, defaults, offline
from verl_aiops.trainers.preflight import entry as preflight
from verl_aiops.trainers.preflight.checks import Check, Run
from verl_aiops.trainers.preflight.defaults import DEFAULTS, apply_defaults, data_parallel_size, user_keys

pytestmark = pytest.mark.usefixtures("platform")

UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
ACTOR = "actor_rollout_ref.actor"
MICRO = f"{ACTOR}.ppo_micro_batch_size_per_gpu"
MODEL = "actor_rollout_ref.model"


@pytest.fixture(scope="module")
def composed():
    """verl's own configuration. Shared: read, never write."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


def _rows(count):
    return [{"prompt": f"question {i}?", "chosen": f"yes {i}", "rejected": f"no {i}, sorry"} for i in range(count)]


@pytest.fixture
def run(composed, tiny_model_dir, write_rows, monkeypatch):
    """run(**{key: value}) -> (config, given): the least a user gives, and these settings, as Hydra would merge them."""
    least = {
        "algorithm.adv_estimator": "dpo",
        "data.train_files": write_rows(_rows(12), "train.jsonl"),
        "data.train_batch_size": 8,
        f"{MODEL}.path": str(tiny_model_dir),
    }

    def make(without=(), **settings):
        config = copy.deepcopy(composed)
        given = {key: value for key, value in {**least, **settings}.items() if key not in without}
        with open_dict(config):
            for key, value in given.items():
                OmegaConf.update(config, key, value, force_add=True)
        monkeypatch.setattr(preflight, "user_keys", lambda: set(given))
        return config, set(given)

    return make


# --- defaults ------------------------------------------------------------------------------------------------------


def test_data_model_and_batch_size_are_enough(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, given = run(**{"data.train_files": "train.jsonl"})
    lines = prepare_offline(config, given)
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    assert (trainer.n_gpus_per_node, trainer.device, trainer.total_epochs) == (1, "cpu", 1)
    assert (actor.ppo_mini_batch_size, actor.ppo_micro_batch_size_per_gpu) == (8, 4)
    assert (actor.strategy, actor.fsdp_config.mixed_precision.param_dtype) == ("fsdp2", "fp32")
    assert config.actor_rollout_ref.actor.optim.override_optimizer_config == {"fused": True}
    assert config.actor_rollout_ref.model.override_config.attn_implementation == "sdpa"
    assert config.actor_rollout_ref.model.use_remove_padding is False
    assert "wandb" not in trainer.logger
    assert config.data.train_files == [str(tmp_path / "train.jsonl")]
    assert config.data.val_files is None
    assert (trainer.val_before_train, trainer.test_freq) == (False, -1)
    assert any(line.startswith(f"{ACTOR}.ppo_mini_batch_size=8  (one optimizer step per") for line in lines)


def test_the_trainer_is_chosen_and_nothing_is_rolled_out(run):
    from verl.utils.import_utils import load_class_from_fqn

    from verl_aiops.trainers.dpo.offline import NoRollouts

    config, given = run()
    prepare_offline(config, given)
    assert config.trainer.v1.trainer_mode == "dpo"
    named = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    assert load_class_from_fqn(named, "AgentLoopManager") is NoRollouts
    assert NoRollouts.create(config=config, llm_client=None) is None
    assert config.actor_rollout_ref.model.model_type == "preference_language_model"


def test_the_trainer_mode_alone_is_enough_too(run):
    config, given = run(without=["algorithm.adv_estimator"], **{"trainer.v1.trainer_mode": "dpo"})
    assert preflight.preference_mode(config) == "dpo"
    prepare_offline(config, given)
    assert config.algorithm.adv_estimator == "dpo"


def test_on_a_gpu_its_own_defaults_stay(run, platform, monkeypatch):
    platform("cuda")
    monkeypatch.setattr(defaults.importlib.util, "find_spec", lambda name: object())  # flash-attn is there
    config, given = run(**{"data.train_batch_size": 48, "algorithm.dpo.preflight_rows": 0})
    prepare_offline(config, given)
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    assert (config.trainer.n_gpus_per_node, config.trainer.device, actor.strategy) == (8, "cuda", "fsdp")
    assert model.use_remove_padding is True and model.enable_gradient_checkpointing is True
    assert actor.fsdp_config.get("mixed_precision") is None
    assert "attn_implementation" not in model.override_config
    assert (actor.ppo_mini_batch_size, actor.ppo_micro_batch_size_per_gpu) == (48, 3)  # 6 pairs for each of 8 workers


def test_workers_that_have_a_sequence_together_want_shared_prompts_where_flash_attn_is_missing(run):
    together = {"trainer.n_gpus_per_node": 2, f"{ACTOR}.ulysses_sequence_parallel_size": 2}
    config, given = run(**together)
    lines = prepare_offline(config, given)
    assert config.algorithm.dpo.logprob_backend == "shared_prompt"
    assert config.actor_rollout_ref.model.use_remove_padding is True
    assert any("use_remove_padding=True  (verl wants it" in line for line in lines)
    config, given = run(**together, **{"algorithm.dpo.logprob_backend": "rows", "algorithm.dpo.loss_type": "kto"})
    with pytest.raises(ConfigError) as faults:
        prepare_offline(config, given)
    assert "ulysses_sequence_parallel_size=2 with algorithm.dpo.logprob_backend=rows: verl splits" in str(faults.value)


def test_without_flash_attn_rows_are_padded_on_a_gpu_too(run, platform, monkeypatch):
    platform("cuda")
    monkeypatch.setattr(defaults.importlib.util, "find_spec", lambda name: None)
    config, given = run()
    apply_defaults(config, given)
    assert config.actor_rollout_ref.model.use_remove_padding is False
    assert config.actor_rollout_ref.model.override_config.attn_implementation == "sdpa"


def test_the_defaults_replaced_are_still_verls(composed):
    """A row whose `verls` is out of date would never apply."""
    for default in DEFAULTS:
        value = OmegaConf.select(composed, default.key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        assert value == (default.verls[0] if isinstance(default.verls, tuple) else default.verls), default.key


def test_every_key_replaced_exists_in_verl(composed):
    for default in DEFAULTS:
        section, _, name = default.key.rpartition(".")
        assert default.verls is None or name in OmegaConf.select(composed, section), default.key
        assert OmegaConf.select(composed, section) is not None, default.key


def test_what_the_user_sets_is_never_overridden_even_to_verls_default(composed):
    config = copy.deepcopy(composed)
    assert apply_defaults(config, {default.key for default in DEFAULTS}) == []
    assert config == composed


def test_what_a_preset_sets_is_kept(run):
    config, given = run()
    with open_dict(config):
        config.trainer.total_epochs = 3
        config.actor_rollout_ref.actor.fsdp_config.mixed_precision = {"param_dtype": "bf16"}
        config.actor_rollout_ref.model.override_config = {"attn_implementation": "eager"}
    lines = apply_defaults(config, given)
    assert config.trainer.total_epochs == 3
    assert config.actor_rollout_ref.actor.fsdp_config.mixed_precision == {"param_dtype": "bf16"}
    assert config.actor_rollout_ref.model.override_config == {"attn_implementation": "eager"}
    assert not any(line.startswith(("trainer.total_epochs", f"{MODEL}.override_config")) for line in lines)


def test_validation_settings_are_the_users_when_there_are_files(run, write_rows):
    validation = {"data.val_files": [write_rows(_rows(3), "val.parquet")], "trainer.test_freq": 5}
    config, given = run(**validation)
    prepare_offline(config, given)
    assert config.data.val_files == validation["data.val_files"]
    assert (config.trainer.val_before_train, config.trainer.test_freq) == (True, 5)


@pytest.mark.parametrize(
    "settings, ranks",
    [
        ({"trainer.n_gpus_per_node": 8, "trainer.nnodes": 2}, 16),
        ({"trainer.n_gpus_per_node": 8, f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": 4}, 2),
        ({"trainer.n_gpus_per_node": 8, f"{ACTOR}.ulysses_sequence_parallel_size": 2}, 4),
    ],
)
def test_data_parallel_ranks(run, settings, ranks):
    assert data_parallel_size(run(**settings)[0]) == ranks


# --- refusals ------------------------------------------------------------------------------------------------------

WRONG = [
    ({"trainer.use_v1": False}, "trainer.use_v1=False"),
    ({"trainer.v1.trainer_mode": "colocate_async"}, "trainer.v1.trainer_mode=colocate_async"),
    ({"trainer.v1.trainer_mode": "separate_async"}, "trainer.v1.trainer_mode=separate_async"),
    (
        {"trainer.v1.trainer_mode": "dpo", "algorithm.adv_estimator": "grpo"},
        "trainer.v1.trainer_mode=dpo with algorithm.adv_estimator=grpo",
    ),
    ({f"{ACTOR}.strategy": "megatron"}, f"{ACTOR}.strategy=megatron"),
    ({f"{MODEL}.use_fused_kernels": True}, f"{MODEL}.use_fused_kernels=True"),
    ({f"{ACTOR}.ppo_epochs": 2}, f"{ACTOR}.ppo_epochs"),
    ({f"{ACTOR}.shuffle": True}, "trainer.total_epochs and data.shuffle"),
    ({"data.train_files": "no/such.parquet"}, "data.train_files: no such file: "),
    ({"data.train_files": ["a.parquet", "b.parquet"]}, "/a.parquet"),
    ({"data.train_files": None}, "data.train_files is not set"),
    ({"data.val_files": "no/such.parquet"}, "data.val_files: no such file: "),
    ({"data.val_files": "~/data/rlhf/gsm8k/test.parquet"}, "data.val_files: no such file: "),
    ({f"{ACTOR}.ppo_mini_batch_size": 3}, f"data.train_batch_size=8 pairs per step, {ACTOR}.ppo_mini_batch_size=3"),
    ({f"{ACTOR}.ppo_mini_batch_size": 16}, "the first must be a multiple of the second"),
    ({"data.train_batch_size": 0}, "data.train_batch_size=0"),
    ({"data.train_batch_size": None}, "data.train_batch_size=None"),
    ({"trainer.n_gpus_per_node": 3}, "3 data-parallel worker(s): the mini-batch must divide"),
    ({"trainer.n_gpus_per_node": 0}, "trainer.n_gpus_per_node"),
    ({"trainer.n_gpus_per_node": 2, MICRO: 3}, f"so 4 pairs each, which {MICRO}=3"),
    ({MICRO: 0}, f"{MICRO}=0"),
    ({MICRO: None}, f"{MICRO}=None"),
    ({"algorithm.dpo.loss_type": "aot"}, f"algorithm.dpo.loss_type=aot sorts over the whole batch|{MICRO}=8"),
    ({"algorithm.dpo.loss_type": ["aot_unpaired"], MICRO: 8, "trainer.n_gpus_per_node": 2}, "does not divide"),
    ({"algorithm.dpo.loss_type": "aot", MICRO: 4, "trainer.n_gpus_per_node": 2}, "sorts over the whole batch"),
    ({"algorithm.dpo.loss_type": "aot", f"{ACTOR}.use_dynamic_bsz": True}, "use_dynamic_bsz=False"),
    (
        {
            f"{ACTOR}.use_dynamic_bsz": True,
            f"{ACTOR}.ppo_max_token_len_per_gpu": 2047,
            "algorithm.dpo.logprob_backend": "rows",
        },
        "ppo_max_token_len_per_gpu=2047 holds no whole pair|(2048 tokens)",
    ),
    (
        {f"{ACTOR}.use_dynamic_bsz": True, f"{ACTOR}.ppo_max_token_len_per_gpu": 1535},
        "ppo_max_token_len_per_gpu=1535 holds no whole pair|(1536 tokens)",
    ),
    ({f"{MODEL}.path": "/no/such/folder"}, f"{MODEL}.path=/no/such/folder: no such folder"),
    ({f"{MODEL}.path": "./folder"}, f"{MODEL}.path=./folder: no such folder"),
    ({f"{MODEL}.path": "a/b/c"}, f"{MODEL}.path=a/b/c: no such folder"),
    ({f"{MODEL}.path": "models/smol"}, f"{MODEL}.path=models/smol"),
    ({"algorithm.dpo.betta": 0.2}, "algorithm.dpo.betta: no such setting (did you mean 'beta'?)"),
    ({"algorithm.dpo.beta": -0.1}, "beta must be > 0"),
    ({"algorithm.dpo.loss_type": "sigmoidal"}, "(did you mean 'sigmoid'?)"),
    ({"algorithm.dpo.reference_sync_steps": 8}, "algorithm.dpo.reference_sync_steps"),
    ({"algorithm.dpo.reference": "live", "algorithm.dpo.reference_path": "m"}, "algorithm.dpo.reference_path"),
    ({"data.truncation": "middle"}, "data.truncation='middle': expected one of error, left, drop"),
    ({"data.max_prompt_length": 0}, "data.max_prompt_length=0: expected a whole number"),
    ({"data.train_max_samples": 5}, "data.train_max_samples=5"),
]


@pytest.mark.parametrize("settings, said", WRONG, ids=[next(reversed(s)).rpartition(".")[2] for s, _ in WRONG])
def test_what_cannot_work_is_refused_naming_the_key(run, settings, said):
    without = [key for key in settings if settings[key] is None and key == "data.train_files"]
    config, given = run(without, **settings)
    with pytest.raises(ConfigError) as error:
        prepare_offline(config, given)
    assert [part for part in said.split("|") if part not in str(error.value)] == []


def test_a_whole_batch_in_one_piece_is_fit_for_aot(run):
    prepare_offline(*run(**{"algorithm.dpo.loss_type": "aot", MICRO: 8}))


def test_a_budget_of_one_pair_is_fit_for_dynamic_batches(run):
    dynamic = {f"{ACTOR}.use_dynamic_bsz": True, f"{ACTOR}.ppo_max_token_len_per_gpu": 2048}
    config, given = run(**dynamic)
    prepare_offline(config, given)
    assert config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu is None


def test_a_folder_that_is_no_model_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="the folder has no config.json"):
        prepare_offline(*run(**{f"{MODEL}.path": str(tmp_path)}))


@pytest.mark.parametrize("method, refused", [("bitsandbytes", True), ("gptq", True), ("mxfp4", False)])
def test_quantised_weights_that_no_engine_loads_are_refused_before_ray(tmp_path, method, refused):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    config = OmegaConf.create({"actor_rollout_ref": {"model": {"path": str(tmp_path)}}})
    faults = basics.check_model(config, Run(kind="dpo", given=set()))
    assert [f"weights are quantised ({method})" in fault for fault in faults] == [True] * refused


def test_a_model_without_tokenizer_is_refused(run, tmp_path, tiny_model_dir):
    (tmp_path / "config.json").write_text((tiny_model_dir / "config.json").read_text())
    with pytest.raises(ConfigError, match=f"{MODEL}.path={tmp_path}: .*tokenizer"):
        prepare_offline(*run(**{f"{MODEL}.path": str(tmp_path)}))


# --- data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"prompt": "p", "reward_model": "r"}] * 8, ["chosen", "rejected", "reward_model"]),
        ([*_rows(7), {"prompt": "p", "chosen": "same", "rejected": "same"}], ["line 8"]),
        (
            [*_rows(7), {"prompt": "p", "chosen": "word " * 900, "rejected": "no"}],
            ["line 8", "data.max_response_length"],
        ),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_faulty_rows_are_refused_with_file_and_line(run, write_rows, rows, said, split):
    from verl_aiops.data import PreferenceDataError

    file = write_rows(rows, "faulty.jsonl")
    with pytest.raises(PreferenceDataError) as error:
        prepare_offline(*run(**{f"data.{split}_files": file}))
    assert [part for part in [file, *said] if part not in str(error.value)] == []


def test_fewer_pairs_than_a_batch_are_refused(run):
    with pytest.raises(ConfigError, match=r"12 usable pairs, fewer than one batch \(data.train_batch_size=16\)"):
        prepare_offline(*run(**{"data.train_batch_size": 16}))


def test_rows_that_are_dropped_do_not_count(run, write_rows):
    long = [{"prompt": "word " * 900, "chosen": f"yes {i}", "rejected": "no"} for i in range(10)]
    settings = {"data.train_files": write_rows([*long, *_rows(4)], "long.jsonl"), "data.truncation": "drop"}
    with pytest.raises(ConfigError, match="4 usable pairs, fewer than one batch"):
        prepare_offline(*run(**settings))
    # the first rows say nothing about a file of which they are a part
    settings["data.train_files"] = write_rows([*long, *_rows(8)], "longer.jsonl")
    prepare_offline(*run(**settings, **{"algorithm.dpo.preflight_rows": 12}))


def test_only_the_first_rows_are_read_and_none_if_so_wished(run, write_rows):
    file = write_rows([*_rows(12), {"prompt": "p", "chosen": "", "rejected": ""}], "end.jsonl")
    prepare_offline(*run(**{"data.train_files": file, "algorithm.dpo.preflight_rows": 12}))
    broken = write_rows([{"prompt": "p"}], "broken.jsonl")
    prepare_offline(*run(**{"data.train_files": broken, "algorithm.dpo.preflight_rows": 0}))


def test_the_chat_template_of_the_run_is_the_one_checked(run, write_rows):
    rows = [
        {k: [{"role": "user" if k == "prompt" else "assistant", "content": v}] for k, v in r.items()} for r in _rows(8)
    ]
    settings = {"data.train_files": write_rows(rows, "chat.jsonl")}
    prepare_offline(*run(**settings))
    template = "{{ raise_exception('this template was used') }}"
    with pytest.raises(ValueError, match="this template was used"):
        prepare_offline(*run(**settings, **{f"{MODEL}.custom_chat_template": template}))


# --- verl's main_ppo -----------------------------------------------------------------------------------------------


@pytest.fixture
def main(monkeypatch):
    """main(config) -> configurations that reached Ray: main_ppo with everything from Ray on left out."""
    from verl.trainer import main_ppo

    reached = []
    monkeypatch.setattr(main_ppo, "run_ppo", lambda config, task_runner_class: reached.append(config))
    monkeypatch.setattr(main_ppo, "auto_set_device", lambda config: None)

    def start(config):
        main_ppo.main.__wrapped__(config)
        return reached

    start.reached = reached
    return start


def test_main_ppo_gets_a_configuration_that_verl_accepts(run, main, capsys):
    (config,) = main(run()[0])
    assert config.trainer.v1.trainer_mode == "dpo"
    assert config.ray_kwargs.ray_init.num_gpus == 1
    shown = capsys.readouterr().out
    assert "verl-aiops: set for this run:" in shown and f"{MICRO}=4" in shown and "num_gpus=1" in shown
    assert "All configuration checks passed" in shown


def test_verls_reference_and_critic_are_not_wanted(run, main):
    """Their micro-batch sizes, which nobody gave, are not asked for."""
    (config,) = main(run(**{f"{ACTOR}.use_kl_loss": True})[0])
    assert config.trainer.v1.trainer_mode == "dpo"


def test_lora_needs_no_name_of_a_rollout(run, main):
    (config,) = main(run(**{f"{MODEL}.lora_rank": 8})[0])
    assert config.actor_rollout_ref.rollout.name == "none"


def test_a_rollout_that_is_named_keeps_its_name(run):
    config, given = run(**{"actor_rollout_ref.rollout.name": "sglang"})
    prepare_offline(config, given)
    assert config.actor_rollout_ref.rollout.name == "sglang"


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"data.train_batch_size": 7, f"{ACTOR}.ppo_mini_batch_size": 2}, "data.train_batch_size=7"),
        ({"ray_kwargs.ray_init.num_cpus": 2}, "ray_kwargs.ray_init.num_cpus=2"),
        ({"data.max_response_length": 1}, "data.max_response_length"),
    ],
    ids=["settings", "cluster", "data"],
)
def test_an_error_ends_the_run_with_one_message_before_ray(run, main, settings, said):
    with pytest.raises(SystemExit) as end:
        main(run(**settings)[0])
    assert isinstance(end.value.code, str) and end.value.code.startswith("verl-aiops: error: ")
    assert said in end.value.code
    assert end.value.__suppress_context__ and end.value.__cause__ is None
    assert main.reached == []


def test_errors_of_other_kinds_are_not_hidden(run, main, monkeypatch):
    def broken(config, run):
        raise ZeroDivisionError

    monkeypatch.setattr(offline, "_CHECKS", (Check(broken, "what is broken"),))
    with pytest.raises(ZeroDivisionError):
        main(run()[0])


def test_other_runs_on_cpu_get_their_logical_resources_only(composed, monkeypatch, platform):
    seen = []
    checked = preflight.with_preflight(lambda **arguments: seen.append(arguments))
    config = copy.deepcopy(composed)
    config.trainer.n_gpus_per_node = 1
    checked(config=config, use_reference_policy=True, use_critic=True)
    assert seen == [{"config": config, "use_reference_policy": True, "use_critic": True}]
    assert config.ray_kwargs.ray_init.num_gpus == 1
    with open_dict(config):
        config.ray_kwargs = composed.ray_kwargs
        config.transfer_queue = composed.transfer_queue
        config.trainer.n_gpus_per_node = composed.trainer.n_gpus_per_node
    assert config == composed


def test_cluster_errors_are_value_errors_like_the_others():
    assert issubclass(ClusterError, ValueError) and issubclass(ConfigError, ValueError)


NO_FILES = "data.train_files is not set. Give one or more parquet or JSONL files of pairs."


def test_through_hydra_a_wrong_command_line_ends_without_a_traceback(
    main, monkeypatch, capsys, tmp_path, tiny_model_dir
):
    """The command a user types, up to Ray: keys of the command line are told from verl's defaults."""
    from verl.trainer import main_ppo

    command = ["main_ppo", f"hydra.run.dir={tmp_path}", "hydra.output_subdir=null"]
    command += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    command += ["algorithm.adv_estimator=dpo", "+data.foo=1", "~trainer.esi_redundant_time"]
    monkeypatch.setattr(sys, "argv", [*command, f"{MODEL}.path={tiny_model_dir}"])
    with pytest.raises(SystemExit) as end:
        main_ppo.main()
    assert end.value.code == f"verl-aiops: error: {NO_FILES}"
    # without a model that is said with it
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        main_ppo.main()
    assert end.value.code == (
        "verl-aiops: error: 2 things keep this run from starting:\n"
        f"  1. {NO_FILES}\n"
        f"  2. {MODEL}.path={tmp_path}/models/deepseek-llm-7b-chat: no such folder.\n"
        "  not looked at before these are mended: the model's kind, the base of the adapters, the tokenizer, "
        "the log-prob backend, the token "
        "budget, the rows of data.train_files, the rows of data.val_files, the trainer, what the "
        "checkpoint was made with"
    )
    assert "Traceback" not in capsys.readouterr().err
    seen = []
    monkeypatch.setattr(main_ppo, "validate_config", lambda **_: seen.append(user_keys()))
    main_ppo.main()
    assert seen == [{"algorithm.adv_estimator", "data.foo", "trainer.esi_redundant_time"}]
    assert user_keys() == set()


@pytest.mark.parametrize("name, fused", [("Adam", {"fused": True}), ("SGD", None)])
def test_only_an_optimizer_that_has_a_fused_kernel_is_told_to_use_it(run, name, fused):
    config, given = run(**{"actor_rollout_ref.actor.optim.optimizer": name})
    apply_defaults(config, given)
    assert config.actor_rollout_ref.actor.optim.override_optimizer_config == fused


@pytest.mark.parametrize("units, after", [(8, 0), (1, 0), (3, 3)])
def test_no_process_is_started_that_would_store_nothing(run, units, after):
    """Whether verl's default or the CPU preset's holds; what the user sets stays."""
    config, given = run(**({UNITS: units} if units == 3 else {}))
    if units != 3:
        OmegaConf.update(config, UNITS, units)
    apply_defaults(config, given)
    assert OmegaConf.select(config, UNITS) == after
