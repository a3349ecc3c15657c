"""Offline DPO's trainer without workers: the order of its set-up, and the mean over the held-out pairs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.utils import tensordict_utils as tu

from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.dpo import offline
from verl_aiops.trainers.dpo.offline import OfflineDPOTrainer
from verl_aiops.trainers.runs.finite import NotFiniteError


class Happened(list):
    """Calls by name, of whatever is asked of it."""

    def of(self, name, result=None):
        def call(*args, **kwargs):
            self.append(name)
            return result

        return call

    def thing(self, *names):
        return SimpleNamespace(**{name: self.of(name) for name in names})


def set_up(monkeypatch, *, cached=False, lora_rank=0, adapter=None, **dpo):
    """What `_setup` does, in order."""
    happened = Happened()
    trainer = object.__new__(OfflineDPOTrainer)
    model = {"path": "model", "lora_rank": lora_rank, "lora_adapter_path": adapter}
    trainer.config = OmegaConf.create({"actor_rollout_ref": {"model": model}})
    trainer.dpo = DPOConfig.from_config(dpo)
    for name in ("_init_tokenizer", "_init_dataloader", "_init_dump_executor", "_init_resource_pool_mgr"):
        setattr(trainer, name, lambda: None)
    trainer.resource_pool_manager = SimpleNamespace(create_resource_pool=lambda: None)
    reference = happened.thing("fill")
    reference.complete_without_model = lambda: cached
    monkeypatch.setattr(offline, "ReferenceScorer", lambda trainer: reference)
    monkeypatch.setattr(offline.ray, "kill", happened.of("kill"))
    for name in ("check_resume", "check_weights", "_load_checkpoint"):
        setattr(trainer, name, happened.of(name))

    def spawn(section):
        happened.append(f"workers of {section.model.path}")
        group = happened.thing("set_loss_fn", "sync_reference")
        group.workers = ["worker"]
        return group

    monkeypatch.setattr(trainer, "spawn_workers", spawn, raising=False)
    trainer._setup()
    return list(happened)


BEGIN = ["check_resume", "workers of model", "set_loss_fn", "check_weights"]


@pytest.mark.parametrize(
    "settings, between",
    [
        ({}, ["fill"]),
        ({"lora_rank": 4}, ["fill"]),
        # the base alone is not what it starts from
        ({"lora_rank": 4, "adapter": "trained"}, ["sync_reference", "fill"]),
        ({"reference": "live"}, ["sync_reference"]),
        # without its adapters a policy is the reference
        ({"reference": "live", "lora_rank": 4}, []),
        ({"reference": "live", "lora_rank": 4, "reference_sync_steps": 3}, ["sync_reference"]),
        ({"loss_type": "simpo"}, []),
    ],
)
def test_the_reference_is_taken_from_the_initial_weights_before_a_checkpoint_is_loaded(monkeypatch, settings, between):
    assert set_up(monkeypatch, **settings) == [*BEGIN, *between, "_load_checkpoint"]


def test_another_models_scores_are_there_and_its_workers_gone_before_the_policys_come(monkeypatch):
    happened = set_up(monkeypatch, reference_path="other")
    assert happened == ["check_resume", "workers of other", "fill", "kill", *BEGIN[1:], "_load_checkpoint"]
    assert set_up(monkeypatch, reference_path="other", cached=True) == [*BEGIN, "_load_checkpoint"]


# --- validation ------------------------------------------------------------------------------------------------------


class Dataset:
    """Pairs whose loss is their number, and that cost it in tokens."""

    def __init__(self, size):
        self.lengths = np.stack([np.arange(size)] * 3, axis=1)

    def __len__(self):
        return len(self.lengths)


def validated(size, *, mini_pairs=4, ranks=1, loss=float):
    """`_validate` over so many pairs, with workers that do with a batch what the objective does: a mean over the pairs
    that count."""
    trainer = object.__new__(OfflineDPOTrainer)
    trainer.val_dataset, trainer.mini_pairs, trainer.ranks, trainer.global_steps = Dataset(size), mini_pairs, ranks, 5
    batches = []

    def build_batch(dataset, indices, *, mini_pairs, counted):
        assert len(indices) == len(counted) == mini_pairs
        batches.append(sum(counted))
        return [loss(index) for index, real in zip(indices, counted) if real]

    def evaluate_pairs(losses):
        metrics = {"loss": np.mean(losses), "rewards/margins": 2 * np.mean(losses), "grad_norm": 1.0}
        return tu.get_tensordict({}, {"metrics": metrics})

    trainer.build_batch = build_batch
    trainer.actor_rollout_wg = SimpleNamespace(evaluate_pairs=evaluate_pairs)
    return trainer._validate(), batches


@pytest.mark.parametrize("size, ranks, batches", [(64, 1, [64]), (70, 1, [64, 6]), (70, 2, [64, 6]), (3, 1, [3])])
def test_the_validation_mean_is_over_the_pairs_however_the_last_batch_is_filled_up(size, ranks, batches):
    """70 pairs make a full batch and one of 6 that counts for 6: not for half of the mean, nor for 64."""
    values, seen = validated(size, ranks=ranks)
    assert seen == batches
    assert values == {
        "val/pairs": size,
        "val/loss": pytest.approx((size - 1) / 2),
        "val/rewards/margins": pytest.approx(size - 1),
    }


def test_a_validation_whose_loss_is_not_finite_ends_the_run():
    with pytest.raises(NotFiniteError, match="validation after step 5: the loss is nan"):
        validated(3, loss=lambda index: torch.nan)


def test_without_held_out_pairs_there_is_nothing_to_validate():
    trainer = object.__new__(OfflineDPOTrainer)
    trainer.val_dataset = None
    assert trainer._validate() == {}
