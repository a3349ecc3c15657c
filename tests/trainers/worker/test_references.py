"""References on CPUs: verl offloads them, into memory that only an accelerator has."""

import numpy as np
import pytest
from rl_parts import batch_of, engine_of, outputs, rows_of
from worker_harness import run_ranks

ROWS = rows_of(prompts=4)
MODELS = ("language_model", "shared_prompt_language_model")


def _scored(model_dir):
    """Log-probs by verl's model that trains, by its reference and by ours, and by both references in bfloat16;
    whether ours is a plain module."""
    import torch
    from torch.distributed.fsdp import FSDPModule

    trained = engine_of(model_dir, MODELS[0])
    data = batch_of(ROWS[: len(ROWS) // torch.distributed.get_world_size()])
    full, half = (
        [engine_of(model_dir, model_type, forward_only=True, model_dtype=dtype) for model_type in MODELS]
        for dtype in ("fp32", "bf16")
    )
    found = [outputs(worker, data.clone())["log_probs"] for worker in (trained, *full, *half)]
    return found, not isinstance(full[1].engine.module, FSDPModule)


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_reference_scores_as_the_model_that_it_is(world, tiny_model_dir):
    for (trained, theirs, ours, theirs_in_half, ours_in_half), plain in run_ranks(world, _scored, tiny_model_dir):
        for row, *values in zip(ROWS, trained, theirs, ours, theirs_in_half, ours_in_half):
            labelled = row[2] > 0
            whole, *references, half, ours = (value[labelled] for value in values)
            for reference in references:
                np.testing.assert_allclose(reference, whole, rtol=0, atol=1e-5)
            # weights in half precision, computed with in float32
            np.testing.assert_allclose(ours, half, rtol=0, atol=1e-5)
            assert np.abs(half - whole).max() > 1e-5
        # where there is one worker there is nothing to shard
        assert plain == (world == 1)
