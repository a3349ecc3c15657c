"""The worker-side objective on pairs, single answers and ranked lists, alone and together, however they are cut."""

import itertools
import math

import pytest
import torch
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric

from verl_aiops.losses import LOSSES, compute_answer_loss, compute_dpo_loss, compute_list_loss
from verl_aiops.trainers.batch import AnswerBatch, nested
from verl_aiops.trainers.worker.facts import METRICS, PairFacts
from verl_aiops.trainers.worker.objective import PreferenceObjective, columns_for_loss

SIZE = 3  # rows of every example
# verdicts, score gaps of pairs, ranks of lists; two examples only fill up the mini-batch
EXAMPLES = [
    {"margin": 0.5},
    {"label": True},
    {"ranks": (2, 1, 2), "scores": (0.1, 0.9, 0.2)},
    {"label": False, "counted": False},
    {"ranks": (1, 2), "scores": (3.0, 1.0)},
    {"label": False},
    {"margin": 2.0},
    {"margin": 1.0, "counted": False},
    {"label": True},
    {"ranks": (3, 2, 1), "scores": (math.nan, 1.0, 2.0)},
    {"label": True},
    {"margin": 0.0},
]
PAIRS_AND_SINGLES = [one for one in EXAMPLES if "ranks" not in one]
SINGLES = [one for one in EXAMPLES if "label" in one]
LISTS = [one for one in EXAMPLES if "ranks" in one]
EVERY = {"beta": 0.3, "loss_type": ["kto", "bco"], "desirable_weight": 1.2}
KL, SHIFT = 0.4, -0.2


def mini_batch(examples):
    """The rows of a mini-batch, and the policy's token log-probs of each."""
    g = torch.Generator().manual_seed(5)
    rows, logps, references, masks = [], [], [], []
    for number, example in enumerate(examples):
        counts = float(example.get("counted", True))
        facts = {"pair_weight": 0.5 + number / 10, "counted": counts}
        if "ranks" in example:
            of = [
                {"rank": float(r), "score": s, "place": i}
                for i, (r, s) in enumerate(zip(*[example[n] for n in ("ranks", "scores")]))
            ]
        elif "label" in example:
            of = [{"verdict": 1.0 if example["label"] else -1.0}, {"estimates_kl": 1.0}]
        else:
            of = [{"beats": 1, "margin": example["margin"]}, {"margin": example["margin"]}]
        of = [facts | one for one in of]
        rows += of + [facts | {"counted": 0.0}] * (SIZE - len(of))
    for _ in rows:
        length = int(torch.randint(1, 6, (), generator=g))
        logps.append(-2 * torch.rand(length, generator=g))
        references.append(-2 * torch.rand(length, generator=g))
        masks.append((torch.rand(length, generator=g) < 0.8).float())
    counting = [one for one in examples if one.get("counted", True)]
    of_all = {
        "global_pairs": len(counting),
        "global_yes": sum(one.get("label") is True for one in counting),
        "global_no": sum(one.get("label") is False for one in counting),
        "mean_chosen_length": 2.5,
        "kl": KL,
        "shift": SHIFT,
    }

    def column(name, missing=0.0):
        return torch.tensor([row.get(name, missing) for row in rows])

    batch = AnswerBatch(
        responses=nested([torch.arange(len(row)) for row in logps]),
        response_mask=nested(masks),
        ref_log_probs=nested(references),
        beats=column("beats", 0).unsqueeze(1),
        place=column("place", 0),
        score=column("score", math.nan),
        **{name: column(name) for name in ("pair_weight", "counted", "verdict", "estimates_kl", "rank", "margin")},
        **{name: torch.full((len(rows),), float(value)) for name, value in of_all.items()},
    )
    return batch, logps, references, masks


def without_fillers(batch, rows):
    """What the engine leaves out: rows that nobody looks at, one kept where there are no others."""
    busy = [at for at in rows if batch.counted[at] > 0 and not batch.estimates_kl[at]]
    return busy or rows[:1]


def trained(examples, cut, ranks=1, drop=False, **settings):
    """Loss, gradient by row and metrics of a mini-batch, cut into micro-batches of so many examples on each rank."""
    batch, logps, _, _ = mini_batch(examples)
    leaves = [row.clone().requires_grad_() for row in logps]
    share = len(examples) // ranks
    loss, of_ranks = 0.0, []
    for rank in range(ranks):
        metrics = {}
        for first in range(rank * share, (rank + 1) * share, cut):
            last = min(first + cut, (rank + 1) * share)
            rows = list(range(first * SIZE, last * SIZE))
            rows = without_fillers(batch, rows) if drop else rows
            part = {}
            for name, column in batch.columns().items():
                kept = [column.unbind()[at] for at in rows] if column.is_nested else column[rows]
                part[name] = nested(kept) if column.is_nested else kept
            data = AnswerBatch(**part).to_tensordict(dp_size=ranks)
            output = {"answer_log_probs": nested([leaves[at] for at in rows])}
            value, told = PreferenceObjective(**settings)(output, columns_for_loss(data, "cpu"))
            (value / ranks).backward()
            loss += value.item() / ranks
            for name, metric in told.items():
                metrics.setdefault(name, metric.init_list()).append(metric)
        of_ranks.append(metrics)
    assert len({tuple(metrics) for metrics in of_ranks}) == 1
    # every rank's micro-batches here are equally many, as verl wants it
    metrics = {name: Metric.aggregate_dp([of_rank[name] for of_rank in of_ranks]) for name in of_ranks[0]}
    return loss, [leaf.grad for leaf in leaves], metrics


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for gradient, wanted in zip(one[1], other[1], strict=True):
        assert (gradient is None or not gradient.any()) == (wanted is None or not wanted.any())
        if gradient is not None and wanted is not None:
            torch.testing.assert_close(gradient, wanted)
    assert set(one[2]) == set(other[2])
    assert one[2] == pytest.approx(other[2], rel=1e-5, abs=1e-7)


MIXTURES = {
    "pairs and singles": (
        PAIRS_AND_SINGLES[:8],
        {**EVERY, "loss_type": ["sigmoid", "kto", "bco"], "loss_weights": [1, 0.5, 2]},
    ),
    "singles": (SINGLES[:4], EVERY),
    "lists": (LISTS + [{**LISTS[0], "counted": False}], {"loss_type": ["plackett_luce", "listwise"], "beta": 0.3}),
    "lists and singles": (
        [one for one in EXAMPLES if "margin" not in one],
        {**EVERY, "loss_type": ["plackett_luce", "kto"]},
    ),
    "pairs with margins": ([one for one in EXAMPLES if "margin" in one], {"score_margin": 0.7}),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_any_cut_and_any_workers_give_the_same(mixture):
    examples, loss = MIXTURES[mixture]
    whole = trained(examples, len(examples), loss_settings=loss)
    assert any(gradient is not None and gradient.any() for gradient in whole[1])
    for cut, ranks, drop in itertools.product((1, 2), (1, 2), (False, True)):
        assert_same(trained(examples, cut, ranks, drop, loss_settings=loss), whole)


def expected(examples, loss):
    """The mean over examples, worked out one by one in float64, and which rows it should move."""
    batch, logps, references, masks = mini_batch(examples)
    leaves = [row.double().requires_grad_() for row in logps]
    policy = [(leaf * mask).sum() for leaf, mask in zip(leaves, masks)]
    reference = [(row.double() * mask).sum() for row, mask in zip(references, masks)]
    kinds = {"pair": [], "single": [], "list": []}
    terms, moved = [], set()
    for number, example in enumerate(examples):
        if not example.get("counted", True):
            continue
        at, weight = number * SIZE, 0.5 + number / 10
        if "ranks" in example:
            rows = list(range(at, at + len(example["ranks"])))
            scores = torch.tensor([example["scores"]])
            p, r = (torch.stack([values[row] for row in rows]).unsqueeze(0) for values in (policy, reference))
            value, rewards = compute_list_loss(p, r, torch.tensor([example["ranks"]]), scores=scores, **loss)
            kinds["list"].append((example["ranks"], rewards[0].tolist(), p[0].tolist()))
        elif "label" in example:
            rows = [at]
            value, rewards = compute_answer_loss(
                policy[at][None], reference[at][None], [example["label"]], kl=KL, shift=SHIFT, **loss
            )
            kinds["single"].append((example["label"], rewards.item(), policy[at].item()))
        else:
            rows = [at, at + 1]
            value, *rewards = compute_dpo_loss(
                *(values[row][None] for values in (policy, reference) for row in rows),
                score_gap=[example["margin"]],
                **loss,
            )
            kinds["pair"].append((*(reward.item() for reward in rewards), *(policy[row].item() for row in rows)))
        terms.append(weight * value.sum())
        moved |= set(rows)
    total = sum(terms) / len(terms)
    total.backward()
    return total.item(), [leaf.grad if row in moved else None for row, leaf in enumerate(leaves)], kinds


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_objective_is_the_mean_over_examples(mixture):
    examples, loss = MIXTURES[mixture]
    loss = {"loss_type": "sigmoid", **loss}
    value, gradients, _ = expected(examples, loss)
    got = trained(examples, 2, 2, loss_settings=loss)
    assert got[0] == pytest.approx(value, rel=1e-5)
    for gradient, wanted in zip(got[1], gradients, strict=True):
        if wanted is None:
            # what fills up a batch or an example, and what the KL is estimated by
            assert gradient is None or not gradient.any()
        else:
            torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_metrics_of_pairs_and_single_answers_are_means_over_those_that_have_them():
    examples, loss = MIXTURES["pairs and singles"]
    _, _, kinds = expected(examples, loss)
    _, _, metrics = trained(examples, 2, 2, loss_settings=loss)
    pairs, singles = kinds["pair"], kinds["single"]
    yes, no = [one for one in singles if one[0]], [one for one in singles if not one[0]]
    assert (len(pairs), len(yes), len(no)) == (2, 3, 1)
    assert metrics == pytest.approx(
        {
            "rewards/chosen": mean([p[0] for p in pairs] + [s[1] for s in yes]),
            "rewards/rejected": mean([p[1] for p in pairs] + [s[1] for s in no]),
            "rewards/accuracies": mean(p[0] > p[1] for p in pairs),
            "rewards/margins": mean(p[0] - p[1] for p in pairs),
            "logps/chosen": mean([p[2] for p in pairs] + [s[2] for s in yes]),
            "logps/rejected": mean([p[3] for p in pairs] + [s[2] for s in no]),
            "logps/accuracies": mean(p[2] > p[3] for p in pairs),
            "rewards/unpaired": mean(s[1] for s in singles),
            "rewards/kl": KL,
            "rewards/shift": SHIFT,
        },
        rel=1e-5,
    )


def test_metrics_of_single_answers_alone():
    _, _, kinds = expected(SINGLES[:4], EVERY)
    _, _, metrics = trained(SINGLES[:4], 1, 2, loss_settings=EVERY)
    yes, no = [one for one in kinds["single"] if one[0]], [one for one in kinds["single"] if not one[0]]
    assert set(metrics) == {
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"),
        *("rewards/unpaired", "rewards/kl", "rewards/shift"),
    }
    assert metrics["rewards/margins"] == pytest.approx(mean(s[1] for s in yes) - mean(s[1] for s in no), rel=1e-5)
    # a mini-batch of one verdict says nothing of the other
    _, _, metrics = trained([one for one in SINGLES if one["label"]], 1, loss_settings=EVERY)
    assert not {"rewards/rejected", "logps/rejected", "rewards/margins"} & set(metrics)
    assert metrics["rewards/chosen"] == pytest.approx(metrics["rewards/unpaired"])


@pytest.mark.parametrize("off, right", [(0.0, 0.5), (1e-7, 0.5), (-1e-7, 0.5), (1e-3, 1.0), (-1e-3, 0.0)])
def test_a_policy_that_is_its_reference_but_for_rounding_ranks_half_right(monkeypatch, off, right):
    """`off`: by how much of itself every better answer's log-prob is above the reference's."""
    made = mini_batch

    def near(examples):
        batch, logps, _, masks = made(examples)
        better = (batch.beats[:, 0] > 0) | (batch.rank == 1)
        references = [row * (1 + off) if one else row.clone() for row, one in zip(logps, better)]
        batch.ref_log_probs = nested(references)
        batch.response_mask = nested([torch.ones_like(row) for row in logps])
        return batch, logps, references, masks

    monkeypatch.setitem(globals(), "mini_batch", near)
    for examples, loss in (([{"margin": 0.5}, {"margin": 2.0}], {}), (LISTS[:2], {"loss_type": "plackett_luce"})):
        _, _, metrics = trained(examples, 1, loss_settings=loss)
        assert metrics["rewards/accuracies"] == pytest.approx(right)
        assert metrics["logps/accuracies"] in (0, 0.25, 0.5, 0.75, 1)


def test_metrics_of_lists():
    examples, loss = MIXTURES["lists"]
    _, _, kinds = expected(examples, loss)
    _, _, metrics = trained(examples, 1, 2, loss_settings=loss)
    assert tuple(metrics) == METRICS
    lists = kinds["list"]
    ends = {"chosen": min, "rejected": max}
    for at, name in ((1, "rewards"), (2, "logps")):
        for side, end in ends.items():
            wanted = mean(mean(v for v, r in zip(one[at], one[0]) if r == end(one[0])) for one in lists)
            assert metrics[f"{name}/{side}"] == pytest.approx(wanted, rel=1e-5)
        shares = []
        for one in lists:
            facts = [(r, v) for r, v in zip(one[0], one[at])]
            shares.append(mean(v > w for r, v in facts for q, w in facts if r < q))
        assert metrics[f"{name}/accuracies"] == pytest.approx(mean(shares), rel=1e-5)
    difference = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    assert metrics["rewards/margins"] == pytest.approx(difference, rel=1e-5, abs=1e-6)


def test_a_micro_batch_of_none_of_the_examples_that_count_has_a_graph_and_every_metric():
    batch, logps, _, _ = mini_batch(SINGLES)
    rows = [1, 2]  # what estimates the KL, and a filler
    part = {
        name: nested([c.unbind()[at] for at in rows]) if c.is_nested else c[rows] for name, c in batch.columns().items()
    }
    data = AnswerBatch(**part).to_tensordict(dp_size=1)
    leaves = [logps[at].clone().requires_grad_() for at in rows]
    loss, metrics = PreferenceObjective(loss_settings=EVERY)({"answer_log_probs": nested(leaves)}, data)
    loss.backward()
    assert loss.item() == 0.0 and all(not leaf.grad.any() for leaf in leaves)
    assert {name: metric.aggregate() for name, metric in metrics.items()} == dict.fromkeys(
        trained(SINGLES[:4], 1, 2, loss_settings=EVERY)[2], 0.0
    )


def test_facts_of_examples():
    batch, _, _, _ = mini_batch(EXAMPLES)
    facts = PairFacts.of(batch.to_tensordict(dp_size=1))
    assert (facts.pairs, facts.chosen, facts.rejected) == (3, [0, 18, 33], [1, 19, 34])
    assert (facts.singles, facts.answers) == (4, [3, 15, 24, 30])
    assert facts.lists == ((6, 7, 8), (12, 13), (27, 28, 29))
    assert (facts.global_pairs, facts.global_yes, facts.global_no) == (10.0, 3.0, 1.0)
    assert facts.scales(2, batch)["rewards/chosen"] == pytest.approx(2 / 9)


def test_single_answers_side_by_side_are_a_slice():
    batch, _, _, _ = mini_batch(SINGLES)
    rows = [at for at in range(len(batch.counted)) if batch.verdict[at] and batch.counted[at]]
    part = {
        name: nested([c.unbind()[at] for at in rows]) if c.is_nested else c[rows] for name, c in batch.columns().items()
    }
    facts = PairFacts.of(AnswerBatch(**part).to_tensordict(dp_size=1))
    assert (facts.singles, facts.answers, facts.pairs, facts.lists) == (4, slice(0, None, 1), 0, ())


def test_weighted_means_of_a_rank_with_more_that_count_than_the_other():
    """Both that fill up the mini-batch on one rank."""
    examples = [*PAIRS_AND_SINGLES[:2], *({**one, "counted": False} for one in PAIRS_AND_SINGLES[2:4])]
    loss = MIXTURES["pairs and singles"][1]
    assert_same(trained(examples, 1, 2, loss_settings=loss), trained(examples, 4, 1, loss_settings=loss))


@pytest.mark.parametrize("loss_type", [name for name, spec in LOSSES.items() if spec.of != "pair"])
def test_the_objective_reads_no_number_that_is_on_the_gpu(loss_type):
    """Tensors without values, of which none can be read, stand for the GPU's."""
    examples = SINGLES if LOSSES[loss_type].of == "single" else LISTS
    batch, logps, _, _ = mini_batch(examples)
    data = batch.to_tensordict(dp_size=1)
    facts = PairFacts.of(data).on("meta")
    data = data.to("meta")
    tu.assign_non_tensor(data, pair_facts=facts)
    values = torch.cat(logps).to("meta").requires_grad_()
    output = {"answer_log_probs": torch.nested.nested_tensor_from_jagged(values, batch.responses.offsets().to("meta"))}
    given = {"loss_type": loss_type, **({"desirable_weight": 1.5} if examples is SINGLES else {})}
    loss, metrics = PreferenceObjective(loss_settings=given)(output, data)
    assert loss.shape == () and loss.requires_grad
    with pytest.raises(RuntimeError, match="meta"):
        metrics["rewards/chosen"].aggregate()


@pytest.mark.parametrize("loss_type", ["kto", "bco"])
def test_an_estimate_that_is_missing_is_said(loss_type):
    batch, logps, _, _ = mini_batch(SINGLES)
    batch.kl = batch.shift = None
    data = batch.to_tensordict(dp_size=1)
    with pytest.raises(
        ValueError, match=rf"loss_type \['{loss_type}'\] needs {'kl' if loss_type == 'kto' else 'shift'}"
    ):
        PreferenceObjective(loss_settings={"loss_type": loss_type})({"answer_log_probs": nested(logps)}, data)
