"""Scoring every pair once with the reference, through the cache."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from verl.utils.fs import copy_to_local

from verl_aiops.kernels.fused_layers import layer_kernels
from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.logprobs.support import choose_backend
from verl_aiops.trainers.preflight.defaults import sequence_parallel_size
from verl_aiops.trainers.reference.cache import (
    ReferenceCache,
    ReferenceIdentity,
    adapter_digest,
    default_cache_dir,
    weights_digest,
)
from verl_aiops.trainers.runs.finite import check_scores

__all__ = ["ReferenceScorer", "reference_note", "reference_weights"]


def _overrides(model) -> str:
    """``override_config`` as text, without the attention, which stands for itself."""
    overrides = OmegaConf.to_container(model.override_config or OmegaConf.create({}), resolve=True)
    overrides.pop("attn_implementation", None)
    return json.dumps(overrides, sort_keys=True)


def reference_weights(model: DictConfig, reference_path: str | None) -> str:
    """Digest of the reference's weights: those of ``reference_path``, else of the model that training starts from, with
    the adapter that it starts from."""
    folder = copy_to_local(reference_path or model.path, use_shm=model.use_shm)
    weights = weights_digest(folder)
    if reference_path or not model.get("lora_adapter_path"):
        return weights
    return hashlib.sha256(f"{weights} {adapter_digest(model.lora_adapter_path)}".encode()).hexdigest()


def reference_note(dpo: DPOConfig, weights: str | None) -> dict:
    """What a checkpoint remembers of its reference, whose weights have this digest; None for a loss without one."""
    return {
        "weights": weights,
        "reference": dpo.reference if weights else None,
        "sync_steps": dpo.reference_sync_steps,
    }


# pairs between two parts of the cache: what a killed pass may lose
_PAIRS_PER_PART = 2048


class ReferenceScorer:
    """Reference log-probs of a trainer's data sets.

    Args:
        trainer: the :class:`~verl_aiops.trainers.dpo.offline.OfflineDPOTrainer` whose data, batching and settings
            count.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.config = trainer.dpo
        self.backend, _ = choose_backend(trainer.config, self.config)
        self.metrics: dict[str, float] = {}
        self.identity: ReferenceIdentity | None = None
        self._keys: dict[int, list[bytes]] = {}
        if not self.config.uses_reference:
            return
        self.identity = self._identify()
        if self.config.reference == "cached":
            root = self.config.reference_cache_dir or default_cache_dir()
            self.cache = ReferenceCache(os.path.expanduser(root), self.identity)
            # by what a pair's tokens and masks are, so that other files with the same pairs find them
            for dataset in self._datasets():
                self._keys[id(dataset)] = [bytes(digest) for digest in dataset.row_digests()]
            wanted = {key for keys in self._keys.values() for key in keys}
            self._found = self.cache.load(wanted)
            self.metrics = {"reference/cache_hits": self._found, "reference/cache_misses": len(wanted) - self._found}
            print(
                f"verl-aiops: reference cache {self.cache.folder}: {self._found} of {len(wanted)} pairs found",
                flush=True,
            )

    def _datasets(self) -> list:
        return [d for d in (self.trainer.train_dataset, self.trainer.val_dataset) if d is not None]

    def _identify(self) -> ReferenceIdentity:
        model = self.trainer.config.actor_rollout_ref.model
        engine = self.trainer.config.actor_rollout_ref.actor.fsdp_config
        return ReferenceIdentity(
            weights=reference_weights(model, self.config.reference_path),
            model_dtype=str(engine.model_dtype),
            compute_dtype=str(OmegaConf.select(engine, "mixed_precision.param_dtype") or "bf16"),
            backend=self.backend,
            attention=str(OmegaConf.select(model, "override_config.attn_implementation") or "flash_attention_2"),
            layers=layer_kernels(
                self.trainer.config.trainer.device,
                use_liger=bool(model.use_liger),
                use_torch_compile=bool(engine.use_torch_compile),
            ),
            packed=bool(model.use_remove_padding),
            sequence_parallel=sequence_parallel_size(self.trainer.config),
            model_overrides=_overrides(model),
            device=self.trainer.config.trainer.device,
        )

    def note(self) -> dict:
        """What a checkpoint remembers of its reference."""
        return reference_note(self.config, self.identity.weights if self.identity else None)

    def complete_without_model(self) -> bool:
        """Whether no reference weights are needed at all: every pair is cached and no sample is to be checked."""
        return not self.metrics["reference/cache_misses"] and not self.config.reference_verify_pairs

    def lookup(self, dataset, indices) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token log-probs (chosen, rejected) of the pairs ``indices``."""
        keys = self._keys[id(dataset)]
        return [self.cache[keys[int(i)]] for i in indices]

    def fill(self, workers) -> None:
        """Score what the cache lacks with the weights that ``workers`` hold; compare a sample of what it has.

        Training batches are scored as the first epoch will see them, micro-batch by micro-batch, so that in
        bfloat16 too the first steps start from the very numbers the policy gives.

        Raises:
            ValueError: cached numbers are not those of this reference.
        """
        if self._found and self.config.reference_verify_pairs:
            self._verify(workers)
        mini = self.trainer.mini_pairs
        batches = []
        for dataset in self._datasets():
            if dataset is self.trainer.train_dataset:
                # whole, with the pairs that fill no step of the first epoch
                order = self.trainer.train_dataloader.epoch(0)
            else:
                order = np.arange(len(dataset))
            for start in range(0, len(order), mini):
                batch = order[start : start + mini]
                if self._lacks(dataset, batch):
                    batches.append((dataset, batch))
        unsaved = 0
        total = sum(len(indices) for _, indices in batches)
        with tqdm(total=total, desc="Reference log-probs", unit="pair", disable=not batches) as bar:
            for dataset, indices in batches:
                if self._lacks(dataset, indices):  # unless batches before held the same pairs
                    for index, pair in self._score(workers, dataset, indices):
                        self.cache.put(self._keys[id(dataset)][index], *pair)
                    unsaved += len(indices)
                bar.update(len(indices))
                if unsaved >= _PAIRS_PER_PART:
                    self.cache.save()
                    unsaved = 0
        self.cache.save()

    def _lacks(self, dataset, indices: np.ndarray) -> bool:
        return any(self._keys[id(dataset)][int(i)] not in self.cache for i in indices)

    def _score(self, workers, dataset, indices: np.ndarray):
        mini = self.trainer.mini_pairs
        # to the shape of a training batch; what only fills up is scored again, to the same numbers
        filled = np.concatenate([indices, np.full(mini - len(indices), indices[0])])
        arranged = self.trainer.arranged(dataset, filled, mini)
        batch = self.trainer.build_batch(dataset, arranged, mini_pairs=mini, with_reference=False)
        rows = [row.numpy() for row in workers.reference_log_probs(batch)["answer_log_probs"].unbind()]
        for place, index in enumerate(arranged):
            pair = rows[2 * place], rows[2 * place + 1]
            check_scores(
                pair,
                f"reference: pair {dataset[int(index)]['id']}",
                "Nothing of it is kept. Is the model whole, and does it compute in float32 "
                "(actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32)?",
            )
            yield int(index), pair

    def _verify(self, workers) -> None:
        """Recompute a few cached pairs; a wrong number here would bend the whole run silently."""
        dataset = self.trainer.train_dataset
        keys = self._keys[id(dataset)]
        known = [i for i in range(len(dataset)) if keys[i] in self.cache]
        sample = np.asarray(known[:: max(1, len(known) // self.config.reference_verify_pairs)], dtype=int)
        sample = sample[: min(self.config.reference_verify_pairs, self.trainer.mini_pairs)]
        if not len(sample):
            return
        # float32: round-off of another batch shape; bfloat16: one rounding of logits near 16 is 0.06
        allowed = 2e-3 if self.identity.compute_dtype in ("fp32", "float32") else 0.5
        for index, pair in self._score(workers, dataset, sample):
            for side, now, before in zip(("chosen", "rejected"), pair, self.cache[keys[index]], strict=True):
                gap = float(np.abs(now - before).max()) if now.shape == before.shape else np.inf
                if not gap <= allowed:
                    raise ValueError(
                        f"reference cache {self.cache.folder}: the {side} answer of training pair {index} differs from "
                        f"a fresh computation by {gap:.3g} nats in a token (allowed {allowed}). The cache does not "
                        "belong to this model. Delete the folder; its pairs are computed again."
                    )
