"""A part of a batch of preferences as one worker process sees it."""

import itertools
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


def _groups(dataset):
    """As many pairs of two prompts: six of four answers to one, so that each answer is in three, and two of another."""
    sides = [(i, side) for i in range(4) for side in ("chosen", "rejected")]
    answers = [(dataset[i][f"{side}_ids"], dataset[i][f"{side}_mask"]) for i, side in sides]
    pairs = [(0, a, b) for a, b in itertools.combinations(range(4), 2)] + [(1, 4, 5), (1, 6, 4)]
    return [
        {
            "prompt_ids": dataset[prompt]["prompt_ids"],
            "chosen_ids": answers[chosen][0],
            "chosen_mask": answers[chosen][1],
            "rejected_ids": answers[rejected][0],
            "rejected_mask": answers[rejected][1],
            "weight": 1.0,
        }
        for prompt, chosen, rejected in pairs
    ]


def _share(worker, examples, reference, micro, dynamic_tokens, backend, **more):
    """This rank's share of a batch of examples in the order in which they were arranged."""
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.dpo.pairs import pair_batch

    batch = pair_batch(
        examples,
        mini_pairs=PAIRS,
        reference=reference,
        ranks=worker.world_size,
        use_dynamic_bsz=dynamic_tokens is not None,
        micro_batch_size_per_gpu=micro,
        max_token_len_per_gpu=dynamic_tokens or 0,
        logprob_backend=backend,
        use_remove_padding=False,
        **more,
    )
    return tu.chunk_tensordict(batch, worker.world_size)[worker.rank]


def _group_part(worker, model_dir, *, micro_pairs, dynamic_tokens=None, order=None, backend="rows"):
    """This rank's share of a batch of `_groups`."""
    from verl_aiops.trainers.dpo.pairs import arrange

    examples = _groups(_dataset(model_dir))
    lengths = [len(e["prompt_ids"]) * 2 + len(e["chosen_ids"]) + len(e["rejected_ids"]) for e in examples]
    order = list(range(PAIRS) if order is None else order)
    prompts = [examples[at]["prompt_ids"].numpy().tobytes() for at in order]
    arranged = arrange([lengths[at] for at in order], PAIRS, worker.world_size, prompts=prompts)
    chosen = [examples[order[at]] for at in arranged]
    # by the answer
    known = [tuple(-6 - (e[f"{s}_ids"] % 7).numpy() / 7 for s in ("chosen", "rejected")) for e in chosen]
    return _share(worker, chosen, known, micro_pairs, dynamic_tokens, backend)


def _part(worker, model_dir, *, micro_pairs, dynamic_tokens=None, order=None, reference=True, backend="rows"):
    """This rank's share of the batch of all pairs."""
    from verl_aiops.trainers.dpo.pairs import arrange, pair_tokens

    dataset = _dataset(model_dir)
    order = np.arange(PAIRS) if order is None else np.asarray(order)
    arranged = order[arrange(pair_tokens(dataset)[order].tolist(), PAIRS, worker.world_size)]
    known = _reference(dataset)
    known = [known[i] for i in arranged] if reference else None
    return _share(worker, [dataset[int(i)] for i in arranged], known, micro_pairs, dynamic_tokens, backend)


def _list_part(worker, model_dir, *, micro=2, backend="rows"):
    """This rank's share of a batch of lists of three ranked answers, two of them to each of four prompts."""
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.dpo.pairs import arrange, pair_batch

    dataset = _dataset(model_dir)
    sides = [dataset[at][f"{side}_ids"] for at in range(PAIRS // 2) for side in ("chosen", "rejected")]
    examples = []
    for at in range(PAIRS):
        answers = [sides[(at + 3 * step) % PAIRS] for step in range(3)]
        judged = {"ranks": [1.0, 2.0, 2.0] if at % 2 else [2.0, 1.0, 3.0], "scores": [1.0, 0.25, -0.5 * at]}
        of_list = {"kind": "list", "answers_ids": answers, "answers_masks": [torch.ones(len(a)) for a in answers]}
        examples.append({"prompt_ids": dataset[at // 2]["prompt_ids"], "weight": 1.0, **of_list, **judged})
    prompts = [example["prompt_ids"].numpy().tobytes() for example in examples]
    chosen = [examples[at] for at in arrange([1] * PAIRS, PAIRS, worker.world_size, prompts=prompts, cost=len)]
    batch = pair_batch(
        chosen,
        mini_pairs=PAIRS,
        reference=[tuple(-6 - (ids % 7).numpy() / 7 for ids in e["answers_ids"]) for e in chosen],
        ranks=worker.world_size,
        rows_per_example=3,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=micro,
        logprob_backend=backend,
        use_remove_padding=False,
    )
    return tu.chunk_tensordict(batch, worker.world_size)[worker.rank]


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _loss_and_gradients(worker, model_dir, *, part=_part, settings=SETTINGS, objective=None, **split):
    from verl.utils import tensordict_utils as tu
    from verl.utils.metric import Metric
    from verl.utils.py_functional import append_to_dict

    from verl_aiops.trainers.worker.objective import PreferenceObjective

    engine = worker.engine
    metrics: dict = {}
    with engine.train_mode():
        engine.optimizer_zero_grad()
        part = part(worker, model_dir, **split)
        tu.assign_non_tensor(part, global_token_num=None)
        objective = objective or PreferenceObjective(loss_settings=settings)
        output = engine.forward_backward_batch(part, objective, forward_only=False)
        append_to_dict(metrics, output["metrics"])
        trained = ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)
        gradients = {name: _whole(p.grad).clone() for name, p in trained}
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


def _single_part(worker, model_dir, *, micro=None, dynamic_tokens=None, backend="rows", estimates_kl=True):
    """This rank's share of a batch of single answers to four prompts, each with that of the next prompt for the KL, and
    of two pairs."""
    from verl_aiops.trainers.dpo.pairs import arrange

    dataset = _dataset(model_dir)
    examples = []
    for at in range(PAIRS - 2):
        item, other = dataset[at // 2], dataset[(at // 2 + 1) % 4]
        side = ("chosen", "rejected")[at % 2]
        of_answer = {"answer_ids": item[f"{side}_ids"], "answer_mask": item[f"{side}_mask"], "label": at % 3 != 0}
        of_kl = {"kl_ids": other[f"{side}_ids"], "kl_mask": other[f"{side}_mask"]}
        examples.append({"kind": "single", "prompt_ids": item["prompt_ids"], "weight": 1.0, **of_answer, **of_kl})
    examples += [dataset[4], dataset[5]]
    prompts = [example["prompt_ids"].numpy().tobytes() for example in examples]
    arranged = arrange([1] * PAIRS, PAIRS, worker.world_size, prompts=prompts, cost=len)
    chosen = [examples[at] for at in arranged]
    names = {"single": ("answer", "kl")[: 1 + estimates_kl], "pair": ("chosen", "rejected")}
    known = [tuple(-6 - (e[f"{name}_ids"] % 7).numpy() / 7 for name in names[e.get("kind", "pair")]) for e in chosen]
    return _share(worker, chosen, known, micro, dynamic_tokens, backend, estimates_kl=estimates_kl)
