"""The reward engine on real worker processes: losses of mixed batches are the same however they are split."""

from itertools import combinations

import pytest
import torch
from preference_parts import PAIRS_FILE, _loss_and_gradients, _whole
from worker_harness import run_workers

from verl_aiops.losses import compute_label_loss, compute_pair_loss, compute_ranking_loss, compute_score_loss

ENGINE = {"model_type": "reward_model"}
SETTINGS = {
    "losses": {"plackett_luce": 1.0, "regression": 0.5, "binary": 2.0},
    "label_smoothing": 0.1,
    "center": 0.02,
}
OF_PAIRS = {"losses": {"bradley_terry": 1.5, "binary": 1.0}, "score_margin": 0.5, "margin": 0.1, "center": 0.02}


def _dataset(model_dir):
    from transformers import AutoTokenizer

    from verl_aiops.data import PreferenceDataset

    lengths = {"max_prompt_length": 2048, "max_response_length": 512, "limit": 8, "progress": False}
    return PreferenceDataset(PAIRS_FILE, AutoTokenizer.from_pretrained(model_dir), scored=True, **lengths)


def _examples(model_dir, lists):
    """Eight: lists of three answers, or pairs of them with gaps of scores, and single answers."""
    data = _dataset(model_dir)
    sides = [data[at][f"{side}_ids"] for at in range(4) for side in ("chosen", "rejected")]
    examples = []
    for at in range(4):
        prompt, answers = data[at // 2]["prompt_ids"], [sides[(at + 3 * step) % 8] for step in range(3)]
        masks = [torch.ones(len(answer)) for answer in answers]
        if lists:
            judged = {"ranks": [1.0, 2.0, 2.0] if at % 2 else [1.0, 2.0, 3.0], "scores": [1.0, 0.25, -0.5 * at]}
            of_list = {"kind": "list", "answers_ids": answers, "answers_masks": masks, **judged}
            examples.append({**of_list, "prompt_ids": prompt, "weight": 1.0 + at})
        else:
            pair = {"chosen_ids": answers[0], "chosen_mask": masks[0], "rejected_ids": answers[1]}
            pair |= {"rejected_mask": masks[1], "margin": 0.3 * at, "kind": "pair"}
            examples.append({**pair, "prompt_ids": prompt, "weight": 1.0 + at})
        single = {"kind": "single", "answer_ids": sides[at], "answer_mask": torch.ones(len(sides[at]))}
        examples.append({**single, "prompt_ids": prompt, "label": at % 2 == 0, "weight": 1.0})
    return examples


def _reward_part(worker, model_dir, *, lists, backend, micro, order=None):
    """This rank's share of a batch of them."""
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.dpo.pairs import arrange, pair_batch

    examples = _examples(model_dir, lists)
    examples = [examples[at] for at in (order or range(8))]
    prompts = [example["prompt_ids"].numpy().tobytes() for example in examples]
    arranged = arrange([1] * 8, 8, worker.world_size, prompts=prompts, cost=len)
    batch = pair_batch(
        [examples[at] for at in arranged],
        mini_pairs=8,
        ranks=worker.world_size,
        rows_per_example=3,
        scored=True,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=micro,
        logprob_backend=backend,
        use_remove_padding=False,
    )
    return tu.chunk_tensordict(batch, worker.world_size)[worker.rank]


def _loss(worker, model_dir, lists, backend, micro, order=None):
    from verl_aiops.trainers.rm.objective import RewardObjective

    objective = RewardObjective(**(SETTINGS if lists else OF_PAIRS))
    how = {"lists": lists, "backend": backend, "micro": micro, "order": order}
    return _loss_and_gradients(worker, model_dir, part=_reward_part, objective=objective, **how)


def _splits(worker, model_dir, lists):
    backends = ("rows", "shared_prompt")
    found = {(b, m): _loss(worker, model_dir, lists, b, m) for b in backends for m in (1, 2)}
    found["reversed"] = _loss(worker, model_dir, lists, "shared_prompt", 2, list(range(8))[::-1])
    (head,) = (p for name, p in worker.engine.module.named_parameters() if "score" in name)
    return found | {"head": _whole(head.detach()).numpy()}


def _plain(model_dir, lists, head):
    """The same loss in the most direct way: one conversation at a time, no engine; and the mean of all scores."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(model_dir, dtype=torch.float32, num_labels=1)
    with torch.no_grad():
        model.score.weight.copy_(torch.as_tensor(head))

    def score(prompt, answer):
        hidden = model.model(torch.cat([prompt, answer]).unsqueeze(0)).last_hidden_state
        return model.score(hidden[0, -1])

    total, means, right = 0.0, [], []
    for example in _examples(model_dir, lists):
        prompt = example["prompt_ids"]
        if example["kind"] == "single":
            scores = score(prompt, example["answer_ids"])
            settings = SETTINGS if lists else OF_PAIRS
            smoothing = {"label_smoothing": settings.get("label_smoothing", 0.0)}
            losses = settings["losses"]["binary"] * compute_label_loss(
                scores, torch.tensor([example["label"]]), **smoothing
            )
            right.append(float((scores.item() > 0) == example["label"]))
        elif lists:
            scores = torch.cat([score(prompt, ids) for ids in example["answers_ids"]])
            ranks, targets = (torch.tensor([example[name]]) for name in ("ranks", "scores"))
            losses = compute_ranking_loss(scores[None], ranks, center=0.02) + 0.5 * compute_score_loss(
                scores[None], targets
            )
            two = [(a, b) for a, b in combinations(range(3), 2) if ranks[0, a] < ranks[0, b]]
            right.append(sum(float(scores[a] > scores[b]) for a, b in two) / len(two))
        else:
            scores = torch.cat([score(prompt, example[f"{side}_ids"]) for side in ("chosen", "rejected")])
            losses = 1.5 * compute_pair_loss(
                scores[:1], scores[1:], margin=[0.1 + 0.5 * example["margin"]], center=0.02
            )
            right.append(float(scores[0] > scores[1]))
        total = total + example["weight"] * losses.sum()
        means.append(scores.mean().item())
    (total / 8).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return total.item() / 8, gradients, sum(means) / 8, sum(right) / 8


@pytest.mark.parametrize("lists, worlds", [(True, (1, 2)), (False, (2,))], ids=["lists", "pairs"])
def test_a_batch_has_one_loss_and_gradient_however_it_is_split(tiny_model_dir, lists, worlds):
    found = [one for n in worlds for one in run_workers(tiny_model_dir, n, _splits, tiny_model_dir, lists, **ENGINE)]
    loss, gradients, mean, right = _plain(tiny_model_dir, lists, found[0].pop("head"))
    for of_rank in found:
        of_rank.pop("head", None)
        for how, (its_loss, its_gradients, metrics) in of_rank.items():
            assert its_loss == pytest.approx(loss, abs=1e-5), how
            assert metrics["rewards/mean"] == pytest.approx(mean, abs=1e-5), how
            assert metrics["rewards/accuracies"] == pytest.approx(right, abs=1e-6), how
            for name, gradient in gradients.items():
                error = abs(its_gradients[name] - gradient).max()
                assert error < 1e-5 + 1e-4 * abs(gradient).max(), (how, name)


def _moving(worker, model_dir):
    _, gradients, _ = _loss(worker, model_dir, False, "shared_prompt", 2)
    return {name: bool(gradient.any()) for name, gradient in gradients.items()}


def test_with_lora_adapters_and_the_whole_score_head_are_trained(tiny_model_dir):
    for moving in run_workers(tiny_model_dir, 2, _moving, tiny_model_dir, lora_rank=4, **ENGINE):
        assert not any("score" in name and "lora" in name for name in moving)
        assert all("score" in name or "lora_" in name for name in moving)
        # B is 0 at the start, so that no gradient comes to A
        assert {name for name, moves in moving.items() if moves} == {n for n in moving if "lora_B" in n or "score" in n}


def _both(worker, model_dir):
    return [_loss(worker, model_dir, False, backend, 8) for backend in ("rows", "shared_prompt")]


def test_head_and_adapters_on_a_base_in_four_bits(tiny_model_dir):
    pytest.importorskip("bitsandbytes")
    options = {"lora_rank": 4, "base_format": "nf4", **ENGINE}
    (((loss, gradients, _), (shared_loss, shared_gradients, _)),) = run_workers(
        tiny_model_dir, 1, _both, str(tiny_model_dir), **options
    )
    assert shared_loss == pytest.approx(loss, abs=1e-5)
    # the head is new, and trained whole
    assert [name for name in gradients if "lora_" not in name] == ["base_model.model.score.weight"]
    for name, gradient in gradients.items():
        gap = abs(shared_gradients[name] - gradient).max()
        assert gap <= 2e-5 * abs(gradient).max() + 1e-8, name
    assert abs(gradients["base_model.model.score.weight"]).max() > 0
