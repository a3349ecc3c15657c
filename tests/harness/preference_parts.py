"""A part of a batch of preferences as one worker process sees it."""

from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

PAIRS_FILE = str(Path(__file__).parents[1] / "fixtures" / "trl_run" / "pairs.jsonl")


PAIRS = 8


SETTINGS = {"beta": 0.3, "loss_type": ["sigmoid", "sft", "sft_seq"], "loss_weights": [1.0, 0.3, 0.01]}


def _dataset(model_dir):
    from transformers import AutoTokenizer

    from verl_aiops.data import PreferenceDataset

    return PreferenceDataset(
        PAIRS_FILE,
        AutoTokenizer.from_pretrained(model_dir),
        max_prompt_length=2048,
        max_response_length=512,
        limit=PAIRS,
        progress=False,
    )


def _reference(dataset):
    """Made-up reference log-probs that depend on the pair alone."""
    rng = np.random.default_rng(0)
    answers = [(len(dataset[i]["chosen_ids"]), len(dataset[i]["rejected_ids"])) for i in range(PAIRS)]
    return [tuple((-6.0 - rng.random(n)).astype(np.float32) for n in lengths) for lengths in answers]


def _part(worker, model_dir, *, micro_pairs, dynamic_tokens=None, order=None, reference=True, backend="rows"):
    """This rank's share of the batch of all pairs."""
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.dpo.pairs import arrange, pair_batch, pair_tokens

    dataset = _dataset(model_dir)
    order = np.arange(PAIRS) if order is None else np.asarray(order)
    world, rank = worker.world_size, worker.rank
    arranged = order[arrange(pair_tokens(dataset)[order].tolist(), PAIRS, world)]
    known = _reference(dataset)
    batch = pair_batch(
        [dataset[int(i)] for i in arranged],
        mini_pairs=PAIRS,
        reference=[known[i] for i in arranged] if reference else None,
        ranks=world,
        use_dynamic_bsz=dynamic_tokens is not None,
        micro_batch_size_per_gpu=micro_pairs,
        max_token_len_per_gpu=dynamic_tokens or 0,
        logprob_backend=backend,
        use_remove_padding=False,
    )
    return tu.chunk_tensordict(batch, world)[rank]


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _loss_and_gradients(worker, model_dir, **split):
    from verl.utils import tensordict_utils as tu
    from verl.utils.metric import Metric
    from verl.utils.py_functional import append_to_dict

    from verl_aiops.trainers.worker.objective import PreferenceObjective

    engine = worker.engine
    metrics: dict = {}
    with engine.train_mode():
        engine.optimizer_zero_grad()
        part = _part(worker, model_dir, **split)
        tu.assign_non_tensor(part, global_token_num=None)
        output = engine.forward_backward_batch(part, PreferenceObjective(loss_settings=SETTINGS), forward_only=False)
        append_to_dict(metrics, output["metrics"])
        gradients = {name: _whole(p.grad).clone() for name, p in engine.module.named_parameters()}
    loss = torch.tensor(float(np.sum(output["loss"])))
    torch.distributed.all_reduce(loss)
    gathered = [None] * worker.world_size
    torch.distributed.all_gather_object(gathered, output["metrics"])
    means = {}
    for name in gathered[0]:
        values = []
        for rank_metrics in gathered:
            flat = rank_metrics[name]
            values.append(flat if isinstance(flat, Metric) else flat[0])
        means[name] = float(Metric.aggregate_dp(values))
    return float(loss) / worker.world_size, {k: v.cpu().numpy() for k, v in gradients.items()}, means
