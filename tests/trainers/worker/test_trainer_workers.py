"""The preference engine on real worker processes: splits of a batch, dtypes, LoRA and references change nothing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from preference_parts import (
    PAIRS,
    PAIRS_FILE,
    SETTINGS,
    _dataset,
    _group_part,
    _loss_and_gradients,
    _part,
    _reference,
    _single_part,
    _whole,
)
from worker_harness import run_workers


def _splits_of_one_batch(worker, model_dir, backend):
    splits = {
        "one pair at a time": {"micro_pairs": 1},
        "two pairs": {"micro_pairs": 2},
        "dynamic": {"micro_pairs": None, "dynamic_tokens": 9000},
        "reversed": {"micro_pairs": 2, "order": range(PAIRS)[::-1]},
    }
    # nothing is cut there
    splits["one micro-batch"] = {"micro_pairs": PAIRS // worker.world_size}
    return {name: _loss_and_gradients(worker, model_dir, backend=backend, **split) for name, split in splits.items()}


def _plain_transformers(model_dir):
    """The same loss in the most direct way: one answer at a time, no padding, all logits, no engine."""
    from transformers import AutoModelForCausalLM

    from verl_aiops.losses import compute_dpo_loss

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa")
    dataset = _dataset(model_dir)
    sums = {"chosen": [], "rejected": []}
    for i in range(PAIRS):
        item = dataset[i]
        for side in sums:
            answer = item[f"{side}_ids"]
            ids = torch.cat([item["prompt_ids"], answer]).unsqueeze(0)
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
            sums[side].append(logps[-len(answer) :].sum())
    reference = _reference(dataset)
    lengths = {side: torch.tensor([len(dataset[i][f"{side}_ids"]) for i in range(PAIRS)]) for side in sums}
    losses, chosen, rejected = compute_dpo_loss(
        torch.stack(sums["chosen"]),
        torch.stack(sums["rejected"]),
        torch.tensor([float(c.sum()) for c, _ in reference]),
        torch.tensor([float(r.sum()) for _, r in reference]),
        chosen_lengths=lengths["chosen"],
        rejected_lengths=lengths["rejected"],
        **SETTINGS,
    )
    losses.mean().backward()
    return (
        float(losses.mean()),
        {n: p.grad.numpy() for n, p in model.named_parameters()},
        float((chosen - rejected).mean()),
    )


def _relative_gap(left, right):
    return max(np.abs(left[n] - right[n]).max() / (np.abs(right[n]).max() + 1e-12) for n in right)


@pytest.fixture(scope="module", params=["rows", "shared_prompt"])
def splits(tiny_model_dir, request):
    one = run_workers(tiny_model_dir, 1, _splits_of_one_batch, str(tiny_model_dir), request.param)[0]
    two = run_workers(tiny_model_dir, 2, _splits_of_one_batch, str(tiny_model_dir), request.param)
    return {"1 worker": one, "2 workers": two[0], "2 workers, rank 1": two[1]}


def test_every_split_gives_the_plain_loss_gradient_and_margin(tiny_model_dir, splits):
    """1 or 2 workers, 1, 2 or 8 pairs a micro-batch, token budgets, order: float32 round-off is all that differs.

    Sums of some 240 float32 log-probs of size 6 carry about 1e-4 of round-off; relative to the gradient's largest
    entry it is below 1e-4 (observed: 1e-5).
    """
    loss, gradients, margin = _plain_transformers(tiny_model_dir)
    for workers, by_split in splits.items():
        for split, (its_loss, its_gradients, metrics) in by_split.items():
            where = f"{workers}, {split}"
            assert its_loss == pytest.approx(loss, rel=1e-5), where
            assert metrics["rewards/margins"] == pytest.approx(margin, abs=1e-4), where
            assert _relative_gap(its_gradients, gradients) < 1e-4, where


def _splits_of_groups(worker, model_dir):
    splits = {
        "one pair at a time": {"micro_pairs": 1},
        "two pairs": {"micro_pairs": 2},
        "one micro-batch": {"micro_pairs": PAIRS // worker.world_size},
        "under a budget": {"micro_pairs": None, "dynamic_tokens": 1500},
        "under a small budget": {"micro_pairs": None, "dynamic_tokens": 700, "order": range(PAIRS)[::-1]},
    }
    found = {}
    for backend in ("rows", "shared_prompt"):
        for name, split in splits.items():
            found[backend, name] = _loss_and_gradients(worker, model_dir, part=_group_part, backend=backend, **split)
    return found


def test_pairs_of_one_prompt_give_the_same_in_any_micro_batches_and_with_any_workers(tiny_model_dir):
    """Six pairs of four answers: prompts and answers that pairs have in common are computed once wherever they meet."""
    folder = str(tiny_model_dir)
    one = run_workers(folder, 1, _splits_of_groups, folder)[0]
    two = run_workers(folder, 2, _splits_of_groups, folder)
    # rows alone, one pair after another
    loss, gradients, _ = one["rows", "one pair at a time"]
    for workers, found in (("1 worker", one), ("2 workers", two[0]), ("2 workers, rank 1", two[1])):
        for split, (its_loss, its_gradients, metrics) in found.items():
            where = f"{workers}, {split}"
            assert its_loss == pytest.approx(loss, rel=1e-5), where
            assert _relative_gap(its_gradients, gradients) < 1e-4, where
            assert metrics["perf/shared_tokens_ratio"] <= 1, where
    together = one["shared_prompt", "one micro-batch"][2]["perf/shared_tokens_ratio"]
    assert together < one["rows", "one micro-batch"][2]["perf/shared_tokens_ratio"] < 0.8 and together < 0.35


KL_SPLITS = {
    "one at a time": {"micro": 1},
    "all": {"micro": PAIRS},
    "under a budget": {"dynamic_tokens": 900},
}


def _estimates(worker, model_dir, shift):
    """The KL that the objective is given, and the rows that it is given, by backend and split; ``shift`` is added to
    the reference's log-probs."""
    from verl.utils import tensordict_utils as tu

    given = []

    def loss(model_output, data, dp_group=None):
        given.append(data["kl"])
        return model_output["answer_log_probs"].values().sum() * 0.0, {}

    found = {}
    for backend in ("rows", "shared_prompt"):
        for name, split in KL_SPLITS.items():
            given.clear()
            split = split | ({"micro": PAIRS // worker.world_size} if name == "all" else {})
            part = _single_part(worker, model_dir, backend=backend, **split)
            part["ref_log_probs"] = torch.nested.nested_tensor_from_jagged(
                part["ref_log_probs"].values() + shift, part["ref_log_probs"].offsets()
            )
            tu.assign_non_tensor(part, global_token_num=None)
            with worker.engine.train_mode():
                worker.engine.optimizer_zero_grad()
                worker.engine.forward_backward_batch(part, loss, forward_only=False)
            assert torch.cat(given).unique().numel() == 1
            found[backend, name] = float(given[0][0]), sum(map(len, given)), len(given)
    return found


def _plain_kl(model_dir):
    """Answer by answer, with all logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa")
    dataset, sums = _dataset(model_dir), []
    for at in range(PAIRS - 2):
        prompt = dataset[at // 2]["prompt_ids"]
        answer = dataset[(at // 2 + 1) % 4][f"{('chosen', 'rejected')[at % 2]}_ids"]
        ids = torch.cat([prompt, answer]).unsqueeze(0)
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        sums.append(float(logps[-len(answer) :].sum() - (-6 - (answer % 7) / 7).sum()))
    lengths = [len(dataset[(at // 2 + 1) % 4][f"{('chosen', 'rejected')[at % 2]}_ids"]) for at in range(PAIRS - 2)]
    return np.mean(sums), np.mean(lengths)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_kl_is_the_mean_over_all_workers_and_micro_batches(tiny_model_dir, workers):
    """Also where a worker's micro-batch, or all of a worker's, hold no row for it; and it is never below 0."""
    folder = str(tiny_model_dir)
    plain, tokens = _plain_kl(folder)
    # in nats a token, so that the mean is above 0
    shift = -20.0
    expected = plain - shift * tokens
    assert expected > 0
    for found in run_workers(folder, workers, _estimates, folder, shift):
        for split, (kl, rows, micro_batches) in found.items():
            assert kl == pytest.approx(expected, rel=1e-5), split
            assert micro_batches == 1 or split[1] != "all"
            # the rows for the KL are not gone through again
            assert rows < 2 * PAIRS // workers or workers == 2
    for found in run_workers(folder, 1, _estimates, folder, 50.0):
        assert {kl for kl, _, _ in found.values()} == {0.0}


def _precision_and_references(worker, model_dir, backend):
    from torch.distributed.fsdp import FSDPModule
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.worker.objective import PreferenceObjective

    engine, report = worker.engine, {}

    def scored():
        part = _part(worker, model_dir, micro_pairs=2, reference=False, backend=backend)
        tu.assign_non_tensor(part, compute_loss=False, no_lora_adapter=engine._is_lora)
        return worker.infer_batch(part)["answer_log_probs"]

    def first_loss(reference):
        part = _part(worker, model_dir, micro_pairs=2, reference=False, backend=backend)
        part["ref_log_probs"] = reference
        tu.assign_non_tensor(part, mini_batch_size=2 * PAIRS, epochs=1, dataloader_kwargs={"shuffle": False})
        worker.set_loss_fn(PreferenceObjective(loss_settings={"beta": 0.1}))
        return tu.get(worker.train_mini_batch(part), "metrics")["loss"][0]

    def weights():
        return {n: _whole(p.detach()).clone() for n, p in engine.module.named_parameters() if p.requires_grad}

    before = scored()
    report["dtype"] = str(before.dtype)
    if not engine._is_lora:
        engine.sync_reference(1.0)
    start = weights()
    report["first loss"] = first_loss(before)
    report["second loss"] = first_loss(before)
    groups = [m._get_fsdp_state()._fsdp_param_group for m in engine.module.modules() if isinstance(m, FSDPModule)]
    trained = [g for g in groups if g and any(p.sharded_param.requires_grad for p in g.fsdp_params)]
    report["reduce dtypes"] = {str(g._reduce_dtype) for g in trained}
    report["trained"] = sorted(start)[:1] + [len(start)]
    after = weights()
    report["weights moved"] = max(float((after[n] - start[n]).abs().max()) for n in start)
    if engine._is_lora:
        report["reference gap"] = float((scored().values() - before.values()).abs().max())
        return report
    report["policy gap"] = float((scored().values() - before.values()).abs().max())
    with engine.reference_weights():
        report["reference gap"] = float((scored().values() - before.values()).abs().max())
    report["restored"] = all(torch.equal(w, after[n]) for n, w in weights().items())
    engine.sync_reference(0.25)
    with engine.reference_weights():
        mixed = weights()
    report["mix gap"] = max(float((mixed[n] - (0.75 * start[n] + 0.25 * after[n])).abs().max()) for n in start)
    return report


@pytest.mark.parametrize(
    "dtype, backend",
    [
        pytest.param("fp32", "rows", marks=pytest.mark.slow),
        ("bf16", "rows"),
        pytest.param("bf16", "shared_prompt", marks=pytest.mark.slow),
    ],
)
def test_first_loss_is_ln_2_and_a_kept_reference_does_not_move(tiny_model_dir, dtype, backend):
    report = run_workers(tiny_model_dir, 1, _precision_and_references, str(tiny_model_dir), backend, param_dtype=dtype)
    report = report[0]
    assert report["dtype"] == "torch.float32"
    # equal numbers on both sides, so the logits are exactly 0: six digits, in bfloat16 too
    assert f"{report['first loss']:.6f}" == f"{math.log(2):.6f}" == "0.693147"
    assert report["second loss"] < report["first loss"]
    assert report["weights moved"] > 0 and report["policy gap"] > 0
    assert report["reference gap"] == 0.0
    assert report["restored"]
    assert report["mix gap"] < 1e-7


@pytest.mark.parametrize("backend", [pytest.param("rows", marks=pytest.mark.slow), "shared_prompt"])
def test_lora_trains_adapters_and_scores_the_reference_without_them(tiny_model_dir, backend):
    report = run_workers(
        tiny_model_dir,
        1,
        _precision_and_references,
        str(tiny_model_dir),
        backend,
        lora_rank=4,
        gradient_checkpointing=True,
        param_dtype="bf16",
    )[0]
    # the first forward pass ran with adapters off, that is frozen; gradients are reduced in float32 all the same
    assert report["reduce dtypes"] == {"torch.float32"}
    assert all("lora_" in name for name in report["trained"][:1])
    assert f"{report['first loss']:.6f}" == "0.693147"
    assert report["second loss"] < report["first loss"]
    assert report["reference gap"] == 0.0


def test_no_arrangement_separates_a_pair(tiny_model_dir):
    """Rows 2i and 2i+1 of what any rank gets, in any micro-batch, answer the same prompt, chosen first."""
    from tensordict import TensorDict  # noqa: F401
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.utils import prepare_micro_batches

    from verl_aiops.trainers.dpo.pairs import arrange, pair_batch, pair_tokens

    dataset = _dataset(tiny_model_dir)
    texts = {json.loads(line)["chosen"][0]["content"] for line in Path(PAIRS_FILE).read_text().splitlines()}
    assert len(texts) > 1
    chosen_answers = {tuple(dataset[i]["chosen_ids"].tolist()): i for i in range(PAIRS)}
    seen = []
    for ranks in (1, 2, 4):
        for mini in (4, 8):
            for budget in (None, 4000, 20000):
                order = arrange(pair_tokens(dataset).tolist(), mini, ranks)
                assert sorted(order) == list(range(PAIRS))
                batch = pair_batch(
                    [dataset[i] for i in order],
                    mini_pairs=mini,
                    ranks=ranks,
                    use_dynamic_bsz=budget is not None,
                    micro_batch_size_per_gpu=1,
                    max_token_len_per_gpu=budget or 0,
                )
                for part in tu.chunk_tensordict(batch, ranks):
                    for rows in tu.make_iterator(part, 2 * mini // ranks, 1, 0, {"shuffle": False}):
                        for micro in prepare_micro_batches(rows)[0]:
                            prompts, answers = micro["prompts"].unbind(), micro["responses"].unbind()
                            for i in range(0, len(prompts), 2):
                                assert torch.equal(prompts[i], prompts[i + 1])
                                pair = chosen_answers[tuple(answers[i].tolist())]
                                assert torch.equal(answers[i + 1], dataset[pair]["rejected_ids"])
                                seen.append(pair)
    assert len(seen) == 3 * 2 * 3 * PAIRS
