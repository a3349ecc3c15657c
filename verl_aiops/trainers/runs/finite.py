"""Numbers that are not finite end a run, with what and where; they are not kept, logged to the end, or exported."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

__all__ = ["FiniteRun", "FiniteWatch", "NotFiniteError", "check_model_folder", "check_scores", "names_not_finite"]

# steps in a row whose gradients are not finite, so that the optimizer leaves the weights alone
MOST_SKIPPED = 5
# torch's gradient scaler begins with 65,536 and halves it at each such step
MOST_SKIPPED_FP16 = 25

LOSSES = ("actor/loss", "actor/pg_loss", "actor/kl_loss", "critic/vf_loss")

_TRY = (
    "Look at the rows of that step, and try a smaller actor_rollout_ref.actor.optim.lr or "
    "actor_rollout_ref.actor.optim.clip_grad, a smaller beta, or float32 "
    "(actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32)."
)


class NotFiniteError(RuntimeError):
    """A weight, score, loss or gradient that is NaN or infinite."""


class FiniteWatch:
    """Looks at each step's loss and gradient norm.

    A loss that is not finite ends the run at once: nothing that comes after it can be trusted. A norm that is not,
    beside a finite loss, is a step that the optimizer leaves out, which now and then happens in half precision; several
    in a row end the run.

    Args:
        most_skipped: so many steps in a row may be left out.
    """

    def __init__(self, most_skipped: int = MOST_SKIPPED):
        self.most_skipped = most_skipped
        self.steps = self.skipped = 0
        self._in_a_row = 0

    @classmethod
    def of(cls, param_dtype: str | None) -> FiniteWatch:
        return cls(MOST_SKIPPED_FP16 if param_dtype in ("fp16", "float16") else MOST_SKIPPED)

    def see(self, step: int, losses: Mapping[str, float], norm: float | None) -> str | None:
        """Take one step's numbers.

        Returns:
            a warning, if the step has changed nothing.

        Raises:
            NotFiniteError: the run should end.
        """
        self.steps += 1
        for name, value in losses.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"step {step}: {name} is {value}. Nothing of this step is kept. {_TRY}")
        if norm is None or math.isfinite(norm):
            self._in_a_row = 0
            return None
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self.most_skipped:
            raise NotFiniteError(
                f"step {step}: the norm of the gradients is {norm}, and was not finite in the "
                f"{self._in_a_row - 1} steps before it. Such steps change nothing. {_TRY}"
            )
        return f"step {step}: the norm of the gradients is {norm}: this step has changed nothing"

    def check_end(self) -> None:
        """Says how many steps have changed nothing. Raises NotFiniteError if all of them."""
        if not self.skipped:
            return
        if self.skipped == self.steps:
            raise NotFiniteError(
                f"the gradients of all {self.steps} steps were not finite, so nothing was trained. {_TRY}"
            )
        print(
            f"verl-aiops: warning: {self.skipped} of {self.steps} steps changed nothing, for gradients that were not "
            "finite",
            flush=True,
        )


class FiniteRun:
    """Stands before verl's trainer in the bases: a step whose numbers are not finite ends the run."""

    @functools.cached_property
    def finite(self) -> FiniteWatch:
        engine = self.config.actor_rollout_ref.actor.fsdp_config
        return FiniteWatch.of(OmegaConf.select(engine, "mixed_precision.param_dtype"))

    def watch_finite(self, metrics: Mapping[str, float]) -> None:
        """Takes a step's metrics. Raises NotFiniteError if the run should end."""
        losses = {name: metrics[name] for name in LOSSES if name in metrics}
        warning = self.finite.see(self.global_steps, losses, metrics.get("actor/grad_norm"))
        if warning:
            print(f"verl-aiops: warning: {warning}", flush=True)


def check_scores(values: Iterable[np.ndarray | torch.Tensor], what: str, mend: str) -> None:
    """Raises NotFiniteError if one of the arrays of log-probs holds a number that is not finite."""
    for array in values:
        found = torch.as_tensor(array)
        if found.is_nested:
            found = found.values()
        if not torch.isfinite(found).all():
            bad = found[~torch.isfinite(found)]
            raise NotFiniteError(f"{what}: {len(bad)} log-prob(s) are not finite ({float(bad[0])}). {mend}")


def names_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of tensors that hold a number that is not finite."""
    return [name for name, tensor in named if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]


def check_model_folder(folder: str | Path) -> None:
    """Raises NotFiniteError if a weight in a folder's safetensors files is not finite."""
    from safetensors import safe_open

    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            bad = names_not_finite((name, file.get_tensor(name)) for name in file.keys())
        if bad:
            raise NotFiniteError(
                f"{len(bad)} weights are not finite: {', '.join(bad[:3])}{', ...' * (len(bad) > 3)}. Nothing is "
                f"exported. {_TRY}"
            )
