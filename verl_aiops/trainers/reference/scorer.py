"""Scoring every answer once with the reference, through the cache."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from verl.utils.fs import copy_to_local

from verl_aiops.files import default_cache_dir
from verl_aiops.kernels.fused_layers import layer_kernels
from verl_aiops.losses import needs_kl
from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.logprobs.support import choose_backend
from verl_aiops.trainers.preflight.defaults import sequence_parallel_size
from verl_aiops.trainers.reference.cache import (
    ReferenceCache,
    ReferenceIdentity,
    adapter_digest,
    weights_digest,
)
from verl_aiops.trainers.runs.finite import check_scores
from verl_aiops.trainers.together import in_blocks

__all__ = ["ReferenceScorer", "reference_note", "reference_weights"]


def _overrides(model, reference_path: str | None) -> str:
    """``override_config`` as text, without the attention, which stands for itself; with the format of a base in four
    bits, which has other numbers. A model of its own for the reference is whole."""
    overrides = OmegaConf.to_container(model.override_config or OmegaConf.create({}), resolve=True)
    overrides.pop("attn_implementation", None)
    base_format = (model.get("lora") or {}).get("base_format")
    if base_format and not reference_path:
        overrides["lora.base_format"] = base_format
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


def answer_keys(dataset, *, estimates_kl: bool = False) -> list[tuple[bytes, ...]]:
    """Of each example the digests of its answers, as `examples.rows_of` lays them out: of prompt, answer and mask."""
    digests, numbers = dataset.answer_digests(), dataset.answer_numbers
    keys = []
    for kind, of_example in zip(dataset.kinds, numbers.tolist(), strict=True):
        # the second of a single answer is the one for the KL
        of_example = of_example[:1] if kind == "single" and not estimates_kl else of_example
        keys.append(tuple(bytes(digests[number]) for number in of_example if number >= 0))
    return keys


def _pair_digest(pair) -> bytes:
    """SHA-256 of a pair's token ids and masks, as caches of earlier versions were keyed."""
    sides = [pair[f"{side}_ids"].numpy() for side in ("chosen", "rejected")]
    ids = [pair["prompt_ids"].numpy(), *sides]
    digest = hashlib.sha256(np.array([len(part) for part in ids], dtype="<i8").tobytes())
    for part in ids:
        digest.update(part.astype("<i4").tobytes())
    for side in ("chosen", "rejected"):
        digest.update(pair[f"{side}_mask"].numpy().astype(np.uint8).tobytes())
    return digest.digest()


# examples between two parts of the cache: what a killed pass may lose
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
        # by data set, of each example the digests of its answers
        self._keys: dict[int, list[tuple[bytes, ...]]] = {}
        if not self.config.uses_reference:
            return
        self.identity = self._identify()
        if self.config.reference == "cached":
            root = self.config.reference_cache_dir or default_cache_dir("reference")
            self.cache = ReferenceCache(os.path.expanduser(root), self.identity)
            # by what the model sees of an answer, so that other files and other examples find it
            estimates_kl = needs_kl(self.config.loss_type)
            for dataset in self._datasets():
                self._keys[id(dataset)] = answer_keys(dataset, estimates_kl=estimates_kl)
            wanted = {keys for of_dataset in self._keys.values() for keys in of_dataset}
            self.cache.load({key for keys in wanted for key in keys}, self._by_pair)
            self._found = sum(all(key in self.cache for key in keys) for keys in wanted)
            self.metrics = {"reference/cache_hits": self._found, "reference/cache_misses": len(wanted) - self._found}
            answers = {key for keys in wanted for key in keys}
            print(
                f"verl-aiops: reference cache {self.cache.folder}: {self._found} of {len(wanted)} examples found "
                f"({sum(key in self.cache for key in answers)} of {len(answers)} answers)",
                flush=True,
            )

    def _by_pair(self) -> dict[bytes, tuple[bytes, ...]]:
        """As parts of earlier versions know answers."""
        return {
            _pair_digest(dataset[at]): keys
            for dataset in self._datasets()
            for at, keys in enumerate(self._keys[id(dataset)])
            if dataset[at].get("kind", "pair") == "pair"
        }

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
            model_overrides=_overrides(model, self.config.reference_path),
            device=self.trainer.config.trainer.device,
        )

    def note(self) -> dict:
        """What a checkpoint remembers of its reference."""
        return reference_note(self.config, self.identity.weights if self.identity else None)

    def complete_without_model(self) -> bool:
        """Whether no reference weights are needed at all: every pair is cached and no sample is to be checked."""
        return not self.metrics["reference/cache_misses"] and not self.config.reference_verify_pairs

    def lookup(self, dataset, indices) -> list[tuple[np.ndarray, ...]]:
        """Token log-probs of the answers of the examples ``indices``; of pairs (chosen, rejected)."""
        keys = self._keys[id(dataset)]
        return [tuple(self.cache[key] for key in keys[int(i)]) for i in indices]

    def fill(self, workers) -> None:
        """Score what the cache lacks with the weights that ``workers`` hold; compare a sample of what it has.

        Training batches are scored as the first epoch will see them, micro-batch by micro-batch, so that in
        bfloat16 too the first steps start from the very numbers the policy gives.

        Raises:
            ValueError: cached numbers are not those of this reference.
        """
        if self._found and self.config.reference_verify_pairs:
            self._verify(workers)
        batches = [
            (dataset, batch)
            for dataset in self._datasets()
            for batch in self._batches(dataset)
            if self._lacks(dataset, batch)
        ]
        unsaved = 0
        total = sum(len(indices) for _, indices in batches)
        with tqdm(total=total, desc="Reference log-probs", unit="example", disable=not batches) as bar:
            for dataset, indices in batches:
                if self._lacks(dataset, indices):  # unless batches before held the same answers
                    for index, answers in self._score(workers, dataset, indices):
                        for key, log_probs in zip(self._keys[id(dataset)][index], answers, strict=True):
                            self.cache.put(key, log_probs)
                    unsaved += len(indices)
                bar.update(len(indices))
                if unsaved >= _PAIRS_PER_PART:
                    self.cache.save()
                    unsaved = 0
        self.cache.save()

    def _batches(self, dataset) -> list[np.ndarray]:
        """The mini-batches of the first epoch, with those of the examples that fill no step of it; of held-out data
        such in which prompts are together."""
        mini = self.trainer.mini_pairs
        if dataset is self.trainer.train_dataset:
            order = self.trainer.train_dataloader
            prompts, epoch, room = order.prompts, order.epoch(0), order.batch
            # where files have shares, an epoch may be without some
            epoch = np.concatenate([epoch, np.setdiff1d(np.arange(len(dataset)), epoch)])
        else:
            prompts, epoch, room = getattr(self.trainer, "val_prompts", None), np.arange(len(dataset)), len(dataset)
        if prompts is not None:
            # as `arrange` lays out each step
            steps = [epoch[at : at + room] for at in range(0, len(epoch), room)]
            epoch = np.concatenate([step[in_blocks(prompts[step].tolist(), mini)] for step in steps])
        return [epoch[at : at + mini] for at in range(0, len(epoch), mini)]

    def _lacks(self, dataset, indices: np.ndarray) -> bool:
        return any(key not in self.cache for i in indices for key in self._keys[id(dataset)][int(i)])

    def _score(self, workers, dataset, indices: np.ndarray):
        mini = self.trainer.mini_pairs
        # to the shape of a training batch; what only fills up is scored again, to the same numbers
        filled = np.concatenate([indices, np.full(mini - len(indices), indices[0])])
        arranged = self.trainer.arranged(dataset, filled, mini)
        batch = self.trainer.build_batch(dataset, arranged, mini_pairs=mini, with_reference=False)
        rows = [row.numpy() for row in workers.reference_log_probs(batch)["answer_log_probs"].unbind()]
        size = len(rows) // len(arranged)
        for place, index in enumerate(arranged):
            # without the rows that only fill up an example
            answers = rows[size * place :][: len(self._keys[id(dataset)][int(index)])]
            example = dataset[int(index)]
            check_scores(
                answers,
                f"reference: {example.get('kind', 'pair')} {example['id']}",
                "Nothing of it is kept. Is the model whole, and does it compute in float32 "
                "(actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32)?",
            )
            yield int(index), answers

    def _verify(self, workers) -> None:
        """Recompute a few cached examples; a wrong number here would bend the whole run silently."""
        dataset = self.trainer.train_dataset
        keys = self._keys[id(dataset)]
        known = [i for i in range(len(dataset)) if all(key in self.cache for key in keys[i])]
        sample = np.asarray(known[:: max(1, len(known) // self.config.reference_verify_pairs)], dtype=int)
        sample = sample[: min(self.config.reference_verify_pairs, self.trainer.mini_pairs)]
        if not len(sample):
            return
        # float32: round-off of another batch shape; bfloat16: one rounding of logits near 16 is 0.06
        allowed = 2e-3 if self.identity.compute_dtype in ("fp32", "float32") else 0.5
        for index, answers in self._score(workers, dataset, sample):
            kind = dataset[index].get("kind", "pair")
            names = ("chosen", "rejected") if kind == "pair" else [f"{at}." for at in range(1, len(answers) + 1)]
            for name, key, now in zip(names, keys[index], answers, strict=True):
                before = self.cache[key]
                gap = float(np.abs(now - before).max()) if now.shape == before.shape else np.inf
                if not gap <= allowed:
                    raise ValueError(
                        f"reference cache {self.cache.folder}: the {name} answer of training {kind} {index} differs "
                        f"from a fresh computation by {gap:.3g} nats in a token (allowed {allowed}). The cache does "
                        "not belong to this model. Delete the folder; its answers are computed again."
                    )
