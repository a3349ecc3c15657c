"""Which weights the worker scores a reference with."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from verl.utils import tensordict_utils as tu

from verl_aiops.trainers.worker.run_ahead import PairTrainingWorker
from verl_aiops.trainers.worker.worker import PreferenceWorker


class Engine:
    """Remembers what was in force at each forward pass."""

    def __init__(self, lora, kept):
        self._is_lora, self.reference_state_kept = lora, kept
        self.adapters, self.weights, self.seen = "on", "policy's", []

    @contextmanager
    def _as(self, name, value):
        before = getattr(self, name)
        setattr(self, name, value)
        yield
        setattr(self, name, before)

    def disable_adapter(self):
        return self._as("adapters", "off")

    def reference_weights(self):
        return self._as("weights", "reference's")

    def eval_mode(self, **_):
        return nullcontext()

    def infer_batch(self, data, loss_function):
        assert loss_function is None
        self.seen.append((self.weights, self.adapters))

    def is_mp_src_rank_with_outputs(self):
        return False


@pytest.mark.parametrize(
    "lora, kept, scored_with",
    [
        # the base under the adapters is the reference
        (True, False, ("policy's", "off")),
        (False, False, ("policy's", "on")),
        # a reference that was kept: the policy's adapters as they were, or a mixture of earlier ones
        (True, True, ("reference's", "on")),
        (False, True, ("reference's", "on")),
    ],
)
def test_a_reference_is_scored_without_the_policys_adapters(lora, kept, scored_with):
    """Through verl's own `infer_batch`, which is what takes the adapters off."""
    worker, actor = object.__new__(PreferenceWorker), object.__new__(PairTrainingWorker)
    worker.actor, actor.engine, actor.loss_fn = actor, Engine(lora, kept), None
    actor.model_config, actor.engine_config = (
        {},
        SimpleNamespace(
            **dict.fromkeys(("use_dynamic_bsz", "use_fused_kernels"), False),
            **dict.fromkeys(("infer_max_token_len_per_gpu", "infer_micro_batch_size_per_gpu"), 1),
        ),
    )
    data = tu.get_tensordict({"row": torch.zeros(2)}, {"global_token_num": None})
    assert worker.reference_log_probs(data) is None
    assert actor.engine.seen == [scored_with]
    assert actor.engine.adapters == "on" and actor.engine.weights == "policy's"
