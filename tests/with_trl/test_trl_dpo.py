"""`verl-aiops trl-dpo`: TRL sees the tokens that main_ppo sees, and its loss and gradient are ours."""

import math

import pytest

pytest.importorskip("trl", minversion="1.16")
pytest.importorskip("peft")

import numpy as np
import torch
from tiny import make_tiny_model
from trl_dpo_harness import answer_log_probs, losses_and_norms, pairs_of, row, settings
from worker_harness import run_workers

from verl_aiops.trl.dpo import build_trainer
from verl_aiops.trl.dpo_data import PairSampler, read_pairs, shared_pairs
from verl_aiops.trl.dpo_settings import SHARED_LOSSES, DPOTraining
from verl_aiops.trl.dpo_start import load_model
from verl_aiops.trl.extra import TrainingError

PAIRS = 8


@pytest.fixture(scope="module")
def other_model_dir(tmp_path_factory):
    """A reference that is not the policy, so that the first loss is not that of a policy at its reference."""
    return make_tiny_model(tmp_path_factory.mktemp("other"), seed=7)


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    import json

    file = tmp_path_factory.mktemp("data") / "two_rounds.jsonl"
    file.write_text("".join(json.dumps(row(at, rounds=2)) + "\n" for at in range(PAIRS)))
    return str(file)


def trainer_of(wanted: DPOTraining, folder, tokenizer):
    """As `train_dpo` makes it."""
    wanted.check()
    reference = load_model(wanted, wanted.reference_model) if wanted.reference_model else None
    train = read_pairs(wanted.data, tokenizer, wanted)
    return build_trainer(wanted, folder, tokenizer, load_model(wanted, wanted.model), train, reference=reference)


def first_step(wanted, folder, tokenizer):
    trainer = trainer_of(wanted, folder, tokenizer)
    trainer.train()
    return trainer.state.log_history[0]


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_model_gets_our_token_ids_and_the_loss_our_masks(
    write_rows, tiny_model_dir, tmp_path, tokenizer, monkeypatch, rounds
):
    file = write_rows([row(at, rounds) for at in range(PAIRS)])
    trainer = trainer_of(settings(file, tiny_model_dir, reference="live"), tmp_path / "out", tokenizer)
    seen, forward = set(), trainer.model.forward

    def spy(*args, labels=None, **kwargs):
        for ids, mask, trained in zip(kwargs["input_ids"], kwargs["attention_mask"], labels):
            real = mask.bool()
            seen.add((tuple(ids[real].tolist()), tuple((trained[real] != -100).int().tolist())))
        return forward(*args, labels=labels, **kwargs)

    monkeypatch.setattr(trainer.model, "forward", spy)
    trainer.train()
    ours = pairs_of(file, tokenizer)
    expected = set()
    for item in (ours[at] for at in range(PAIRS)):
        for side in ("chosen", "rejected"):
            ids = torch.cat([item["prompt_ids"], item[f"{side}_ids"]])
            mask = torch.cat([torch.zeros_like(item["prompt_ids"]), item[f"{side}_mask"]])
            expected.add((tuple(ids.tolist()), tuple(mask.tolist())))
    assert seen == expected
    between = sum(0 in item["chosen_mask"].tolist() for item in (ours[at] for at in range(PAIRS)))
    assert between == (PAIRS if rounds == 2 else 0)


@pytest.mark.parametrize("pairs, batch", [(10, 4), (8, 8), (7, 2)])
def test_pairs_come_in_the_order_of_main_ppo(pairs, batch):
    from verl_aiops.trainers.dpo.pairs import PairOrder

    order = PairOrder(pairs, batch, seed=3, shuffle=True, data_digest="")
    sampler = PairSampler(pairs, batch, seed=3)
    taken = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        taken += list(sampler)
    steps = [taken[start : start + batch] for start in range(0, len(taken), batch)]
    assert steps == [order.step(step).tolist() for step in range(1, 3 * order.steps_per_epoch + 1)]


def test_every_epoch_of_a_run_has_its_own_order(write_rows, tiny_model_dir, tmp_path, tokenizer):
    file = write_rows([row(at) for at in range(9)])
    trainer = trainer_of(settings(file, tiny_model_dir, epochs=2, batch_size=4), tmp_path / "out", tokenizer)
    taken, collate = [], trainer.data_collator
    ours = pairs_of(file, tokenizer)
    number = {tuple(ours[at]["chosen_ids"].tolist()): at for at in range(9)}

    def spy(examples):
        taken.extend(number[tuple(example["chosen_ids"])] for example in examples)
        return collate(examples)

    trainer.data_collator = spy
    trainer.train()
    wanted = [np.random.default_rng([1, epoch]).permutation(9)[:8].tolist() for epoch in range(2)]
    assert taken == wanted[0] + wanted[1] and trainer.state.global_step == 4


# --- loss and gradient -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tiny_model_dir, other_model_dir, two_rounds):
    return run_workers(other_model_dir, 1, answer_log_probs, two_rounds, str(other_model_dir))[0]


def _smoothing(name):
    return {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.2, "aot_unpaired": 0.1}.get(name, 0.0)


def test_first_loss_and_gradient_norm_are_those_of_our_trainers_worker(
    tiny_model_dir, other_model_dir, two_rounds, reference, tmp_path, tokenizer
):
    """Two rounds, a reference of its own, padded micro-batches; each shared loss, and a weighted sum of two.

    Float32 round-off is all that differs (observed: 2e-6 of the loss, 8e-5 of the norm).
    """
    beta = 0.3
    wanted = [(("sigmoid",), None, 2), (("sigmoid", "sft"), (1.0, 0.2), PAIRS)]
    wanted += [((name,), None, PAIRS) for name in SHARED_LOSSES if name != "sigmoid"]
    ours = run_workers(
        tiny_model_dir,
        1,
        losses_and_norms,
        two_rounds,
        str(tiny_model_dir),
        reference,
        [
            (
                {
                    "beta": beta,
                    "loss_type": list(names),
                    "loss_weights": weights and list(weights),
                    "label_smoothing": _smoothing(names[0]),
                },
                micro,
            )
            for names, weights, micro in wanted
        ],
    )[0]
    for (names, weights, micro), (loss, norm) in zip(wanted, ours, strict=True):
        run = settings(
            two_rounds,
            tiny_model_dir,
            reference_model=str(other_model_dir),
            beta=beta,
            loss_type=names,
            loss_weights=weights,
            label_smoothing=_smoothing(names[0]),
            micro_batch=micro,
        )
        entry = first_step(run, tmp_path / "-".join(names), tokenizer)
        assert entry["loss"] == pytest.approx(loss, rel=1e-5), names
        assert entry["grad_norm"] == pytest.approx(norm, rel=3e-4), names
    assert abs(ours[0][0] - math.log(2)) > 0.01  # a reference of its own, so no ln 2


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_policy_at_its_reference_starts_at_ln_2(write_rows, tiny_model_dir, tmp_path, tokenizer, reference, rank):
    file = write_rows([row(at, rounds=2) for at in range(PAIRS)])
    run = settings(file, tiny_model_dir, reference=reference, lora_rank=rank, gradient_checkpointing=True, epochs=2)
    trainer = trainer_of(run, tmp_path / "out", tokenizer)
    trainer.train()
    first, second = (entry["loss"] for entry in trainer.state.log_history[:2])
    assert first == pytest.approx(math.log(2), abs=1e-5) and second < first - 1e-3
    trained = [name for name, weights in trainer.model.named_parameters() if weights.requires_grad]
    assert trained and all("lora_" in name for name in trained) == bool(rank)


def test_held_out_metrics_are_means_over_pairs(write_rows, tiny_model_dir, other_model_dir, tmp_path, tokenizer):
    """Five pairs in batches of two: the last batch has one, and counts as one."""
    file = write_rows([row(at, rounds=2) for at in range(PAIRS)])
    held_out = write_rows([row(at, rounds=2) for at in range(20, 25)], "val.jsonl")
    run = settings(file, tiny_model_dir, val=(held_out,), reference_model=str(other_model_dir))
    train, val = (read_pairs(files, tokenizer, run) for files in (run.data, run.val))
    policy, other = load_model(run, run.model), load_model(run, run.reference_model)
    trainer = build_trainer(run, tmp_path / "out", tokenizer, policy, train, val, other)
    trainer.evaluate()
    said = trainer.state.log_history[-1]

    def log_prob(model, item, side):
        ids = torch.cat([item["prompt_ids"], item[f"{side}_ids"]])[None]
        logits = model(input_ids=ids).logits[0, len(item["prompt_ids"]) - 1 : -1]
        logps = logits.log_softmax(-1).gather(-1, item[f"{side}_ids"][:, None])[:, 0]
        return float((logps * item[f"{side}_mask"]).sum())

    plain, reference = load_model(run, run.model).eval(), load_model(run, run.reference_model).eval()
    margins, right, losses = [], [], []
    with torch.no_grad():
        for item in (val[at] for at in range(5)):
            chosen, rejected = (log_prob(plain, item, side) for side in ("chosen", "rejected"))
            gap = chosen - rejected - (log_prob(reference, item, "chosen") - log_prob(reference, item, "rejected"))
            margins.append(0.1 * gap)
            right.append(chosen > rejected)
            losses.append(math.log1p(math.exp(-0.1 * gap)))
    assert said["eval_rewards/margins"] == pytest.approx(np.mean(margins), abs=1e-4)
    assert said["eval_rewards/accuracies"] == pytest.approx(np.mean([m > 0 for m in margins]))
    assert said["eval_logps/accuracies"] == pytest.approx(np.mean(right))
    assert said["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert shared_pairs(val, train) == 0 and shared_pairs(train, train) == PAIRS


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, said",
    [
        ({"loss_type": ("simpo",)}, "--loss-type simpo: TRL has no such loss. Use one of sigmoid, .*main_ppo"),
        ({"loss_type": ("dpo",)}, "unknown loss_type 'dpo' .did you mean 'sigmoid'"),
        ({"loss_type": ("sigmoid", "sft")}, "TRL takes sft over each micro-batch.*Set --micro-batch 8"),
        ({"loss_type": ("aot",)}, "TRL takes aot over each micro-batch"),
        ({"label_smoothing": 0.1}, "TRL's sigmoid would pass over it.*robust"),
        ({"loss_type": ("hinge",), "label_smoothing": 0.1}, "label_smoothing=0.1 has no effect"),
        ({"loss_type": ("exo_pair",)}, "label_smoothing must be in .0, 0.5. for exo_pair"),
        ({"loss_weights": (1.0, 2.0)}, "loss_weights has 2 values for 1 losses"),
        ({"beta": 0.0}, "beta must be > 0"),
        ({"micro_batch": 3}, "--micro-batch 3 does not divide --batch-size 8"),
        ({"lr": math.nan}, "--lr nan: expected a number above 0"),
        ({"warmup": 1.0}, "--warmup 1.0: expected a share"),
        ({"max_prompt_length": 0}, "--max-prompt-length 0: expected a number above 0"),
        ({"seed": -1}, "--seed -1: expected a whole number, 0 or more"),
        ({"reference": "none"}, "--reference none: expected one of cached, live"),
    ],
)
def test_settings_that_cannot_work_are_told(given, said):
    with pytest.raises(TrainingError, match=said):
        settings("data", "model", **given).check()


def test_the_shared_losses_are_those_that_both_know():
    from dataclasses import fields

    from trl import DPOConfig

    from verl_aiops.losses import LOSS_TYPES

    told = next(field for field in fields(DPOConfig) if field.name == "loss_type").metadata["help"]
    assert set(SHARED_LOSSES) == {name for name in LOSS_TYPES if f"'{name}'" in told}
