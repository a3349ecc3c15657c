"""What the worker-side objective asks of the GPU, and when."""

import dataclasses
import pickle

import pytest
import torch
from verl.utils import tensordict_utils as tu

from verl_aiops.losses.table import LOSSES
from verl_aiops.trainers.batch import AnswerBatch, nested
from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.worker import objective
from verl_aiops.trainers.worker.objective import PairFacts, PreferenceObjective

ANSWERS = ((5, 3), (2, 6), (4, 4))


def batch(counted=(True, True, True)):
    g = torch.Generator().manual_seed(0)
    examples, references = [], []
    for lengths in ANSWERS:
        example = {"prompt_ids": torch.arange(4), "weight": 1.0}
        for side, length in zip(("chosen", "rejected"), lengths):
            example |= {f"{side}_ids": torch.arange(length), f"{side}_mask": torch.ones(length)}
        examples.append(example)
        references.append(tuple(-torch.rand(length, generator=g) for length in lengths))
    data = pair_batch(examples, mini_pairs=3, reference=references, counted=counted)
    tu.assign_non_tensor(data, dp_size=1)
    return data


def policy(data, device="cpu"):
    offsets = data["responses"].offsets()
    values = -torch.rand(int(offsets[-1]), generator=torch.Generator().manual_seed(1))
    values = values.to(device).requires_grad_()
    return values, {"answer_log_probs": torch.nested.nested_tensor_from_jagged(values, offsets.to(device))}


@pytest.mark.parametrize("counted", [(True, True, True), (True, False, True), (False, False, False)])
def test_facts_read_beforehand_change_nothing(counted):
    results = []
    for beforehand in (False, True):
        data = batch(counted)
        if beforehand:
            tu.assign_non_tensor(data, pair_facts=PairFacts.of(data))
        values, output = policy(data)
        loss, metrics = PreferenceObjective()(output, data)
        loss.backward()
        results.append((loss, values.grad, {name: metric.aggregate() for name, metric in metrics.items()}))
    (loss, gradient, metrics), (other_loss, other_gradient, other_metrics) = results
    assert torch.equal(loss, other_loss) and torch.equal(gradient, other_gradient) and metrics == other_metrics
    assert (gradient.abs().sum() > 0) == any(counted)


def loss_and_gradient(data, token_logps, references, **settings):
    """Of the objective, the gradient by answer."""
    values = [row.clone().requires_grad_() for row in token_logps]
    data["ref_log_probs"] = nested(references)
    loss, _ = PreferenceObjective(**settings)({"answer_log_probs": nested(values)}, data)
    loss.backward()
    return loss.detach(), [value.grad for value in values]


def group_and_pairs():
    """An answer that beats two others: as three rows, and as two pairs of which each has it."""
    g = torch.Generator().manual_seed(2)
    lengths = (5, 3, 7)
    best, one, other = [torch.arange(length) for length in lengths]
    example = {"prompt_ids": torch.arange(4), "weight": 1.0, "chosen_ids": best, "chosen_mask": torch.ones(5)}
    pairs = [{**example, "rejected_ids": ids, "rejected_mask": torch.ones(len(ids))} for ids in (one, other)]
    twice = pair_batch(pairs, mini_pairs=2)
    tu.assign_non_tensor(twice, dp_size=1)
    whole = AnswerBatch.of(twice)
    names = ("responses", "response_mask")
    group = AnswerBatch(
        # the one in the middle is the best
        **{name: nested([getattr(whole, name).unbind()[row] for row in (1, 0, 3)]) for name in names},
        beats=torch.tensor([[0, 0], [-1, 1], [0, 0]]),
        **{name: torch.ones(3) for name in ("pair_weight", "counted")},
        **{name: getattr(whole, name)[:3] for name in ("mean_chosen_length", "global_pairs")},
    ).to_tensordict(dp_size=1)
    logps = [-torch.rand(length, generator=g) for length in lengths]
    references = [-torch.rand(length, generator=g) for length in lengths]
    return (group, [1, 0, 2]), (twice, [0, 1, 0, 2]), logps, references


def test_rows_may_be_in_several_pairs_and_stand_in_any_order():
    (group, of_group), (twice, of_pairs), logps, references = group_and_pairs()
    results = []
    for data, answers in ((group, of_group), (twice, of_pairs)):
        loss, gradients = loss_and_gradient(data, [logps[a] for a in answers], [references[a] for a in answers])
        by_answer = [sum(g for g, a in zip(gradients, answers) if a == answer) for answer in range(3)]
        results.append((loss, by_answer))
    (loss, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(loss, expected)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other)
        assert gradient.abs().sum() > 0


def test_pairs_side_by_side_are_slices_and_those_that_do_not_count_are_gone():
    facts = PairFacts.of(batch())
    assert (facts.pairs, facts.chosen, facts.rejected) == (3, slice(0, None, 2), slice(1, None, 2))
    some = PairFacts.of(batch((True, False, True)))
    assert (some.pairs, some.chosen, some.rejected, some.global_pairs) == (2, [0, 4], [1, 5], 2.0)
    assert PairFacts.of(batch((False, False, False))).pairs == 0


def test_what_travels_is_the_columns_that_are_described_and_only_those_of_the_loss_go_to_the_device():
    data = batch()
    described = {field.name for field in dataclasses.fields(AnswerBatch)}
    tensors = {name for name, value in data.items() if isinstance(value, torch.Tensor)}
    # of examples that are no pairs, of pairs with scores, and of batches that are cut otherwise than verl cuts them
    others = {"verdict", "estimates_kl", "rank", "place", "score", "margin", "kl", "shift", "micro_batch"}
    others |= {"global_yes", "global_no"}
    assert tensors - {"loss_mask"} == described - {"behaviour_log_probs"} - others
    assert all(f"        {name}: " in AnswerBatch.__doc__ for name in described)
    there = AnswerBatch.of(data).columns(loss=True)
    assert set(there) == {"response_mask", "pair_weight", "ref_log_probs"}
    moved = objective.columns_for_loss(data, "cpu")
    assert {name for name, value in moved.items() if isinstance(value, torch.Tensor)} == set(there)


def test_metrics_are_read_when_asked_for_and_travel_as_plain_ones(monkeypatch):
    """Read before the backward pass, they would make the GPU wait for its launch."""
    reads = []
    of_tensor = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or of_tensor(tensor))
    data = batch()
    tu.assign_non_tensor(data, pair_facts=PairFacts.of(data))
    reads.clear()
    _, output = policy(data)
    _, metrics = PreferenceObjective()(output, data)
    assert not reads
    values = {name: metric.aggregate() for name, metric in metrics.items()}
    assert reads == [torch.Size([len(objective.METRICS)])]
    travelled = pickle.loads(pickle.dumps(metrics))
    assert {name: metric.aggregate() for name, metric in travelled.items()} == values
    assert 0 <= values["rewards/accuracies"] <= 1 and values["rewards/margins"] == pytest.approx(
        values["rewards/chosen"] - values["rewards/rejected"]
    )


# AOT sorts margins, and looks whether there are weights
@pytest.mark.parametrize(
    "loss_type", [name for name, spec in LOSSES.items() if spec.of == "pair" and not name.startswith("aot")]
)
def test_the_objective_reads_no_number_that_is_on_the_gpu(loss_type):
    """Between forward and backward pass each such number is a wait. Tensors without values, of which none can be read,
    stand for the GPU's."""
    data = batch()
    facts = PairFacts.of(data)
    data = data.to("meta")
    tu.assign_non_tensor(data, pair_facts=facts)
    smoothing = {"label_smoothing": 1e-3} if loss_type == "exo_pair" else {}
    _, output = policy(batch(), "meta")
    loss, metrics = PreferenceObjective(loss_settings={"loss_type": loss_type, **smoothing})(output, data)
    assert loss.shape == () and loss.requires_grad and set(metrics) == set(objective.METRICS)
    with pytest.raises(RuntimeError, match="meta"):
        metrics["rewards/chosen"].aggregate()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_between_forward_and_backward_nothing_waits_for_the_gpu():
    data = batch()
    facts = PairFacts.of(data)
    data = data.to("cuda")
    tu.assign_non_tensor(data, pair_facts=facts)
    values, output = policy(batch(), "cuda")
    # what is loaded at the first call is not what this is about
    PreferenceObjective()(output, data)[0].backward()
    values, output = policy(batch(), "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        PreferenceObjective()(output, data)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values.grad.abs().sum() > 0
