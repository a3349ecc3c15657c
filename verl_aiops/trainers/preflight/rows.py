"""What a run of verl's own is checked for that asks only for our engine: any data, any reward, any estimator."""

from __future__ import annotations

import importlib

from omegaconf import DictConfig, open_dict

from verl_aiops.missing import why_missing
from verl_aiops.trainers.config import shares_prompts
from verl_aiops.trainers.preflight.backend import check_backend, check_torn
from verl_aiops.trainers.preflight.basics import fill_in
from verl_aiops.trainers.preflight.checks import Check, Run
from verl_aiops.trainers.preflight.common import MODE
from verl_aiops.trainers.preflight.defaults import NO_FLASH_ATTN
from verl_aiops.trainers.preflight.four_bits import refuse_elsewhere
from verl_aiops.trainers.preflight.prompts import check_looks

__all__ = ["checks"]


def _fill_in(config: DictConfig, run: Run) -> None:
    if shares_prompts(config):
        fill_in(config, run, NO_FLASH_ATTN, numbers=True)


def _choose_trainer(config: DictConfig, run: Run) -> None:
    """Ours keeps a prompt's rows together and leaves out passes that are not needed; of other modes than verl's
    synchronous one there is none of ours, and the engine alone does its part."""
    trainer = config.trainer
    if not shares_prompts(config) or trainer.v1.trainer_mode != "sync":
        return
    importlib.import_module("verl_aiops.trainers.rl.scored_trainer")
    if why_missing(f"trainer mode {MODE}") is None:
        check_looks(config, run)
        with open_dict(config):
            trainer.v1.trainer_mode = MODE
        run.lines.append(f"trainer.v1.trainer_mode={MODE}  (verl's sync, with a prompt's rows kept together)")


_CHECKS = (
    Check(refuse_elsewhere, "the base of the adapters"),
    Check(check_backend, "the log-prob backend"),
    Check(_fill_in, "defaults", (check_backend,)),
    Check(check_torn, "micro-batches", (check_backend,)),
    Check(_choose_trainer, "the trainer", last=True),
)


def checks(config: DictConfig) -> tuple[Check, ...]:
    """The list of such a run; what verl checks stays verl's."""
    return _CHECKS
