"""Which engine policy and critic of GRPO, PPO and their kin get: `algorithm.logprob_backend`, before Ray starts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import transformers
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers.modeling_layers import GenericForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from verl_aiops.missing import MISSING, error_text, why_missing
from verl_aiops.seam.elsewhere import is_neo
from verl_aiops.trainers.config import SHARED_POLICY, ConfigError, shares_prompts
from verl_aiops.trainers.logprobs.support import CRITIC, POLICY, Place, choose, settle
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.common import MODE, data_files
from verl_aiops.trainers.preflight.defaults import static_batches
from verl_aiops.trainers.preflight.defaults_rl import has_critic
from verl_aiops.trainers.rl.config import RLConfig

__all__ = ["KEY", "check_backend", "check_not_ours", "check_torn"]

KEY, CRITIC_KEY = "algorithm.logprob_backend", "algorithm.critic_backend"
_TYPE = f"{POLICY.model}.model_type"
_NAMES = ("engine shared_prompt_language_model", "engine shared_prompt_value_model", "micro-batches as planned")
# settings with which verl's engine does more in a forward pass than ours: the value without, and what it does then
_MORE = {
    "distillation.enabled": (False, "a teacher is compared with over the vocabulary"),
    f"{POLICY.role}.router_replay.mode": ("disabled", "experts are those of another pass"),
    f"{POLICY.engine}.router_replay.mode": ("disabled", "experts are those of another pass"),
    f"{POLICY.model}.mtp.enable": (False, "heads beside the model's own are trained"),
    f"{POLICY.engine}.qat.enable": (False, "weights are rounded in the forward pass"),
}


def check_not_ours(config: DictConfig, run: Run) -> list[str]:
    """The key on the command line of a preference run, which has one of its own; a preset's is of no account there."""
    # of algorithm's own keys: what a section of it calls alike is meant
    given = [key for key in run.given if key.startswith("algorithm.") and key.count(".") == 1]
    misplaced = sorted(key for key in given if RLConfig.concerns(key.partition(".")[2]))
    return [f"{key}: for GRPO and PPO. Here it is algorithm.{run.kind}.logprob_backend." for key in misplaced]


def check_backend(config: DictConfig, run: Run) -> None:
    """Settle it in the configuration: the key, the policy's model type, and what the critic gets.

    Raises:
        ConfigError: a value that it cannot have, or ``shared_prompt`` by name where that cannot be had.
    """
    wanted = RLConfig.from_config(config).logprob_backend
    if CRITIC_KEY in run.given:
        raise ConfigError(f"{CRITIC_KEY}: follows from {KEY} and the critic's model. Remove it.")
    if wanted is None or wanted == "stock":
        return
    folders = {f"{POLICY.model}.path": OmegaConf.select(config, f"{POLICY.model}.path")}
    backend, why = choose(config, KEY, wanted, folders, otherwise="stock", against=_against(config, POLICY))
    run.lines += settle(config, KEY, backend, why)
    if backend == "shared_prompt":
        with open_dict(config):
            OmegaConf.update(config, _TYPE, SHARED_POLICY)
    if has_critic(config):
        folders = {f"{CRITIC.model}.path": OmegaConf.select(config, f"{CRITIC.model}.path")}
        against = _against_critic(config, folders)
        backend, why = choose(config, CRITIC_KEY, "auto", folders, otherwise="stock", against=against, place=CRITIC)
        run.lines += settle(config, CRITIC_KEY, backend, why)


def _against(config: DictConfig, place: Place) -> Iterator[str]:
    """What keeps a run from our engine whatever its model is; what lies below `strategy` is FSDP's alone."""
    strategy = OmegaConf.select(config, f"{place.role}.strategy")
    if strategy not in ("fsdp", "fsdp2"):
        yield f"{place.role}.strategy={strategy}, and its engine is FSDP's"
    if not config.trainer.use_v1 and not is_neo():
        yield "trainer.use_v1=False is verl's legacy trainer"
    for key, (without, does) in _MORE.items():
        value = OmegaConf.select(config, key)
        if value not in (None, without):
            yield f"{key}={value}: {does}"
    named = OmegaConf.select(config, _TYPE)
    if named not in (None, SHARED_POLICY):
        yield f"{_TYPE}={named} is set"
    if pictures := _pictures(config):
        yield f"the rows of {pictures} have images or videos"
    yield from _not_in_this_verl()


def _against_critic(config: DictConfig, folders: dict[str, str]) -> Iterator[str]:
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode")
    if mode not in ("sync", MODE):
        yield f"trainer.v1.trainer_mode={mode} makes the critic itself"
    yield from _against(config, CRITIC)
    yield from filter(None, (_without_head(config, path) for path in folders.values()))


def _without_head(config: DictConfig, path: str) -> str | None:
    """Why a critic of this folder's type would hand nothing on that its attention has to know."""
    try:
        kind = transformers.AutoConfig.from_pretrained(
            path, trust_remote_code=OmegaConf.select(config, f"{CRITIC.model}.trust_remote_code") or False
        ).model_type
    except (OSError, ValueError):
        return None  # told by who needs it
    name = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.get(kind)
    if name is None:
        return f"transformers has no head for values of models of type {kind!r}"
    if not issubclass(getattr(transformers, name), GenericForTokenClassification):
        return f"the head for values of models of type {kind!r} is not transformers' general one"
    return None


def _pictures(config: DictConfig) -> str | None:
    """The first training file whose first row has images or videos; what cannot be read is verl's to report."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = {config.data.get("image_key", "images"), config.data.get("video_key", "videos")}
    for path in data_files(config):
        try:
            file = pq.ParquetFile(path)
            columns = sorted(keys.intersection(file.schema_arrow.names))
            rows = next(file.iter_batches(batch_size=1, columns=columns)).to_pylist() if columns else []
        except (pa.ArrowException, OSError, StopIteration):
            continue
        if any(value for row in rows for value in row.values()):
            return path
    return None


def _not_in_this_verl() -> Iterator[str]:
    try:
        importlib.import_module("verl_aiops.trainers.worker.rows_engine")
    except Exception as error:
        MISSING.update(dict.fromkeys(_NAMES[:2], error_text(error)))
    if why := why_missing(*_NAMES):
        yield why


def check_torn(config: DictConfig, run: Run) -> None:
    """Say where the user's own settings tear every prompt's answers apart."""
    if not shares_prompts(config):
        return
    actor, n = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    if actor.shuffle and actor.ppo_mini_batch_size < config.data.train_batch_size:
        # verl's workers draw the mini-batches from their share, long after the trainer put its rows in order
        run.lines.append(
            "warning: actor_rollout_ref.actor.shuffle=True draws rows into "
            f"{-(-config.data.train_batch_size // actor.ppo_mini_batch_size)} mini-batches without regard to their "
            "prompts: each that has some of a prompt's answers computes it again, which perf/torn_prompts does not "
            "count. Prompts are in random order without it (data.shuffle)"
        )
    size = actor.ppo_micro_batch_size_per_gpu
    if static_batches(config) and size is not None and size < n:
        run.lines.append(
            f"warning: actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={size} is less than "
            f"actor_rollout_ref.rollout.n={n}: each prompt goes through the model {-(-n // size)} times. Set {n} or a "
            "multiple of it, or actor_rollout_ref.actor.use_dynamic_bsz=True"
        )
