"""Everything that is settled on the driver before Ray starts: defaults, checks, and one clear message."""

from __future__ import annotations

import functools
import importlib
import logging
import os

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from verl_aiops.missing import error_text, require, why_missing
from verl_aiops.trainers.config import PREFERENCE_MODEL_TYPE, ConfigError, DPOConfig
from verl_aiops.trainers.dpo.adapter import prepare_adapter
from verl_aiops.trainers.logprobs.support import longest_pair, settle_backend
from verl_aiops.trainers.preflight.available import check_available
from verl_aiops.trainers.preflight.defaults import apply_defaults, data_parallel_size, sequence_parallel_size, user_keys
from verl_aiops.trainers.preflight.online import prepare_online
from verl_aiops.trainers.preflight.rl import is_triage_run, prepare_triage, refuse_ignored_keys
from verl_aiops.trainers.preflight.storage import check_storage
from verl_aiops.trainers.runs.checkpoint_health import check_checkpoint, find_checkpoint
from verl_aiops.trainers.runs.ending import install as install_ending

__all__ = ["load_tokenizer", "preference_mode", "prepare_offline", "with_preflight"]

logger = logging.getLogger(__name__)

NO_ROLLOUTS = "verl_aiops.trainers.dpo.offline.NoRollouts"


def preference_mode(config: DictConfig) -> str | None:
    """``"dpo"`` or ``"online_dpo"`` for runs that the preference trainers serve, else None."""
    asked = (OmegaConf.select(config, "trainer.v1.trainer_mode"), config.algorithm.adv_estimator)
    return next((mode for mode in asked if mode in ("dpo", "online_dpo")), None)


def with_preflight(validate_config):
    """Wrap verl's ``validate_config``, the one function of ``main_ppo`` that sees the configuration before Ray."""
    # here, not in each call: what cannot be imported must not reach a run that is verl's alone
    from verl.utils import device as verl_device

    from verl_aiops.data import PreferenceDataError
    from verl_aiops.platform.cluster import ClusterError, check_cluster
    from verl_aiops.trainers.runs.finite import NotFiniteError
    from verl_aiops.trainers.runs.resume import NothingLeft

    require(verl_device, "get_device_name")

    @functools.wraps(validate_config)
    def checked(config, use_reference_policy, use_critic):
        given = user_keys()
        kind = _kind(config)
        device = verl_device.get_device_name()
        try:
            lines = []
            if kind:
                check_available(config, kind, on_cpu=device == "cpu")
                prepare = {"dpo": prepare_offline, "online_dpo": prepare_online, "triage": prepare_triage}[kind]
                lines += prepare(config, given)
                check_checkpoint(config, preference=kind != "triage")
                lines += check_storage(config, preference=kind != "triage")
            if kind in ("dpo", "online_dpo"):
                use_reference_policy = use_critic = False
            if kind in ("dpo", "online_dpo") or device == "cpu":
                lines += check_cluster(config, given, device)
        except NothingLeft as finished:
            print(f"verl-aiops: {finished}")
            raise SystemExit(0) from None
        except (ConfigError, ClusterError, PreferenceDataError, NotFiniteError) as error:
            # SystemExit passes Hydra without a traceback; the message is all the user needs
            raise SystemExit(f"verl-aiops: error: {error}") from None
        if lines:
            print("verl-aiops: set for this run:\n  " + "\n  ".join(lines))
        if kind:
            install_ending()
        return validate_config(config=config, use_reference_policy=use_reference_policy, use_critic=use_critic)

    checked.checks_for_verl_aiops = True
    return checked


def _kind(config: DictConfig) -> str | None:
    """``"dpo"``, ``"online_dpo"``, ``"triage"``, or None for a run that is verl's alone."""
    try:
        return preference_mode(config) or ("triage" if is_triage_run(config) else None)
    except Exception as error:  # a configuration that is not verl 0.9's: nothing of ours can have been asked for in it
        logger.warning("verl-aiops leaves this configuration to verl, as it cannot be read: %s", error_text(error))
        return None


def prepare_offline(config: DictConfig, given: set[str]) -> list[str]:
    """Turn a verl configuration into one that offline DPO can run, or refuse it.

    Returns:
        one line per key that was filled in.

    Raises:
        ConfigError: a setting that cannot work.
        PreferenceDataError: a data file that cannot work.
    """
    refuse_ignored_keys(config)
    _check_trainer(config, given)
    _check_files(config, given)
    _check_sizes(config)
    lines = apply_defaults(config, given)
    lines += find_checkpoint(config, preference=True)[1]
    dpo = DPOConfig.from_config(config)
    _check_model(config)
    _check_vision(config)
    lines += prepare_adapter(config, given)
    lines += settle_backend(config, dpo)
    _check_batches(config, dpo)
    with open_dict(config):
        config.algorithm.adv_estimator = "dpo"
        config.trainer.v1.trainer_mode = "dpo"
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = NO_ROLLOUTS
        config.actor_rollout_ref.model.model_type = PREFERENCE_MODEL_TYPE
        if OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):
            # verl reads the name even where nothing is rolled out
            config.actor_rollout_ref.rollout.name = "none"
        if not config.data.val_files:
            config.trainer.val_before_train = False
            config.trainer.test_freq = -1
    _check_pairs(config, dpo)
    _check_resume(config, dpo)
    return lines


def _check_trainer(config: DictConfig, given: set[str]) -> None:
    if not config.trainer.use_v1:
        raise ConfigError(
            "trainer.use_v1=False: verl's legacy trainer has no preference training. Remove the setting (True is "
            "verl's default)."
        )
    mode = config.trainer.v1.trainer_mode
    if mode not in ("sync", "dpo"):
        raise ConfigError(
            f"trainer.v1.trainer_mode={mode}: offline DPO has no rollouts to run asynchronously. Remove the setting, "
            "or use trainer.v1.trainer_mode=dpo."
        )
    if mode == "dpo" and "algorithm.adv_estimator" in given and config.algorithm.adv_estimator != "dpo":
        raise ConfigError(
            f"trainer.v1.trainer_mode=dpo with algorithm.adv_estimator={config.algorithm.adv_estimator}: offline DPO "
            "estimates no advantages. Set algorithm.adv_estimator=dpo or remove it."
        )
    strategy = config.actor_rollout_ref.actor.strategy
    if strategy not in ("fsdp", "fsdp2"):
        raise ConfigError(
            f"actor_rollout_ref.actor.strategy={strategy}: offline DPO runs on verl's FSDP engines. Use fsdp2 or fsdp."
        )
    if OmegaConf.select(config, "actor_rollout_ref.model.use_fused_kernels"):
        raise ConfigError(
            "actor_rollout_ref.model.use_fused_kernels=True: the preference trainers compute the output head only "
            "where a label is, which verl's fused kernels cannot do. Set it to False."
        )
    if config.actor_rollout_ref.actor.ppo_epochs != 1 or config.actor_rollout_ref.actor.shuffle:
        raise ConfigError(
            "actor_rollout_ref.actor.ppo_epochs and .shuffle repeat or reorder rows inside a step, which would tear "
            "pairs apart. Use trainer.total_epochs and data.shuffle."
        )


def _check_files(config: DictConfig, given: set[str]) -> None:
    """Absolute paths, as the trainer may run in another working directory; verl's example files are no data."""
    for key, required in (("train_files", True), ("val_files", False)):
        value = config.data[key]
        if f"data.{key}" not in given and "gsm8k" in str(value):
            if required:
                raise ConfigError("data.train_files is not set. Give one or more parquet or JSONL files of pairs.")
            value = None
        if value is None:
            if key == "val_files" and "trainer.test_freq" in given and config.trainer.test_freq > 0:
                raise ConfigError(
                    f"trainer.test_freq={config.trainer.test_freq}, but there is nothing to validate on. Give "
                    "data.val_files, or remove it."
                )
            with open_dict(config):
                config.data[key] = None
            continue
        files = list(value) if isinstance(value, ListConfig | list | tuple) else [value]
        files = [os.path.abspath(os.path.expanduser(str(f))) for f in files]
        for path in files:
            if not os.path.isfile(path):
                raise ConfigError(f"data.{key}: no such file: {path}")
        with open_dict(config):
            config.data[key] = files


def _check_sizes(config: DictConfig) -> None:
    """The numbers that the defaults and the other checks are computed from."""
    from verl_aiops.data.dataset import TRUNCATIONS

    if config.data.truncation not in TRUNCATIONS:
        raise ConfigError(f"data.truncation={config.data.truncation!r}: expected one of {', '.join(TRUNCATIONS)}.")
    for key in (
        "data.train_batch_size",
        "data.max_prompt_length",
        "data.max_response_length",
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "trainer.n_gpus_per_node",
        "trainer.nnodes",
    ):
        value = OmegaConf.select(config, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key}={value}: expected a whole number, 1 or more.")


def _check_batches(config: DictConfig, dpo: DPOConfig) -> None:
    from verl_aiops.losses import needs_whole_batch

    actor = config.actor_rollout_ref.actor
    pairs, mini, ranks = config.data.train_batch_size, actor.ppo_mini_batch_size, data_parallel_size(config)
    micro = actor.ppo_micro_batch_size_per_gpu
    arithmetic = (
        f"data.train_batch_size={pairs} pairs per step, actor_rollout_ref.actor.ppo_mini_batch_size={mini} pairs per "
        f"optimizer step, {ranks} data-parallel worker(s)"
    )
    if ranks < 1:
        raise ConfigError("trainer.n_gpus_per_node x trainer.nnodes is smaller than one model-parallel group.")
    if pairs % mini:
        raise ConfigError(f"{arithmetic}: the first must be a multiple of the second.")
    if mini % ranks:
        raise ConfigError(
            f"{arithmetic}: the mini-batch must divide among the workers, pair by pair. Make it a multiple of {ranks}."
        )
    if not actor.use_dynamic_bsz and (not isinstance(micro, int) or micro < 1 or (mini // ranks) % micro):
        raise ConfigError(
            f"{arithmetic}, so {mini // ranks} pairs each, which "
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro} (in pairs) does not divide."
        )
    if needs_whole_batch(dpo.loss_type) and (actor.use_dynamic_bsz or ranks > 1 or micro != mini):
        raise ConfigError(
            f"algorithm.dpo.loss_type={dpo.loss_type} sorts over the whole batch, so a split batch would change its "
            f"result. {arithmetic}: use one worker, actor.use_dynamic_bsz=False and "
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={mini}, or another loss."
        )
    longest = longest_pair(config, config.algorithm.dpo.logprob_backend)
    if actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu < longest:
        raise ConfigError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} holds no whole pair "
            f"of the lengths that data.max_prompt_length and data.max_response_length allow ({longest} tokens). Raise "
            "it or lower the lengths."
        )


def _check_model(config: DictConfig) -> None:
    path = os.path.expanduser(config.actor_rollout_ref.model.path)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise ConfigError(f"actor_rollout_ref.model.path={path}: the folder has no config.json, so it is no model.")
        path = os.path.abspath(path)
        with open_dict(config):
            config.actor_rollout_ref.model.path = path
    elif os.path.isabs(path) or path.startswith(".") or path.count("/") > 1:
        raise ConfigError(f"actor_rollout_ref.model.path={path}: no such folder.")


def _check_vision(config: DictConfig) -> None:
    """Text pairs on a vision-language model go through its language model alone."""
    from transformers import AutoConfig

    section = config.actor_rollout_ref.model
    try:
        model = AutoConfig.from_pretrained(section.path, trust_remote_code=section.trust_remote_code)
    except Exception:  # whatever keeps it from being loaded is told by those who need it
        return
    if getattr(model, "vision_config", None) is None:
        return
    patch = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "glm4v": "glm4v"}.get(model.model_type)
    if patch is not None:
        importlib.import_module(f"verl.models.transformers.{patch}")
        if why := why_missing(f"text rows of {'GLM-4V' if patch == 'glm4v' else 'Qwen2-VL'}"):
            raise ConfigError(f"actor_rollout_ref.model.path={section.path}: {why}. Or train a model of text alone.")
    if sequence_parallel_size(config) > 1:
        raise ConfigError(
            f"actor_rollout_ref.model.path={section.path} is a vision-language model ({model.model_type}): text pairs "
            "cannot be split over workers there. Set ulysses_sequence_parallel_size=1, or train a model of text alone."
        )


def _check_pairs(config: DictConfig, dpo: DPOConfig) -> None:
    """Read, render and check the first rows of the files with the tokenizer of the run."""
    batch, most = config.data.train_batch_size, config.data.get("train_max_samples") or -1
    if 0 < most < batch:
        raise ConfigError(f"data.train_max_samples={most} is less than one batch (data.train_batch_size={batch}).")
    if dpo.preflight_rows == 0:
        return
    from verl_aiops.trainers.dpo.pairs import load_pairs

    model = config.actor_rollout_ref.model
    tokenizer = load_tokenizer(model)
    if model.custom_chat_template:
        tokenizer.chat_template = model.custom_chat_template
    rows = max(dpo.preflight_rows, batch)
    train = load_pairs(config.data, tokenizer, "train", limit=rows)
    # rows that were dropped say nothing about a file of which only the beginning was read
    if len(train) < batch and train.report.rows < rows:
        raise ConfigError(
            f"data.train_files hold {len(train)} usable pairs, fewer than one batch (data.train_batch_size={batch})."
        )
    if config.data.val_files:
        load_pairs(config.data, tokenizer, "val", limit=dpo.preflight_rows)


def _check_resume(config: DictConfig, dpo: DPOConfig) -> None:
    """A run that goes on from a checkpoint: the same data, and what else is not as it was."""
    from verl_aiops.trainers.runs.note import RunNote, run_settings
    from verl_aiops.trainers.runs.resume import settle, start_folder, start_model

    folder = start_folder(config.trainer)
    if folder is None:
        return
    from verl_aiops.trainers.dpo.pairs import check_saved_order, load_pairs, pair_order
    from verl_aiops.trainers.reference.scorer import reference_note, reference_weights

    model = config.actor_rollout_ref.model
    tokenizer = load_tokenizer(model)
    if model.custom_chat_template:
        tokenizer.chat_template = model.custom_chat_template
    train = load_pairs(config.data, tokenizer, "train")
    val = load_pairs(config.data, tokenizer, "val") if config.data.val_files else None
    order = pair_order(train, config.data)
    now = RunNote(
        trainer="dpo",
        total_steps=config.trainer.total_training_steps or order.steps_per_epoch * config.trainer.total_epochs,
        settings=run_settings(config, "dpo", DPOConfig.from_config(config)),  # the backend is settled by now
        data=order.state_dict(),
        model=start_model(model, None),
        held_out=val.identity() if val else None,
    )
    weights = reference_weights(model, dpo.reference_path) if dpo.uses_reference else None
    settle(
        folder, now, reference_note(dpo, weights), config, dpo, without_note=lambda: check_saved_order(folder, order)
    )


def load_tokenizer(model: DictConfig):
    from verl.utils import hf_tokenizer

    key = "tokenizer_path" if model.tokenizer_path else "path"
    try:
        return hf_tokenizer(model[key], trust_remote_code=model.trust_remote_code)
    except (ImportError, OSError, ValueError) as error:
        what = "" if os.path.isdir(os.path.expanduser(model[key])) else "no such folder, and as a name on the hub "
        raise ConfigError(
            f"actor_rollout_ref.model.{key}={model[key]}: {what}its tokenizer cannot be loaded: "
            + " ".join(str(error).split())
        ) from None
