"""Examples of every kind as rows, and how a batch of them is cut: for any workers and sizes the same mini-batches."""

import itertools
import math

import numpy as np
import pytest
import torch
from verl.utils import tensordict_utils as tu

from verl_aiops.trainers.dpo.examples import rows_of, tokens_seen
from verl_aiops.trainers.dpo.pairs import arrange, pair_batch


def ids(*numbers):
    return torch.tensor(numbers)


def ones(length):
    return torch.ones(length, dtype=torch.int64)


def pair(prompt, chosen, rejected, **more):
    masks = {"chosen_mask": ones(len(chosen)), "rejected_mask": ones(len(rejected))}
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, **masks, "weight": 1.0, **more}


def single(prompt, answer, label, kl=(8, 8), **more):
    example = {"kind": "single", "prompt_ids": prompt, "answer_ids": answer, "answer_mask": ones(len(answer))}
    return example | {"label": label, "kl_ids": ids(*kl), "kl_mask": ones(len(kl)), "weight": 1.0, **more}


def ranked(prompt, answers, ranks, scores=None):
    masks = [ones(len(answer)) for answer in answers]
    scores = scores or [math.nan] * len(answers)
    example = {"kind": "list", "prompt_ids": prompt, "answers_ids": answers, "answers_masks": masks, "weight": 2.0}
    return example | {"ranks": ranks, "scores": scores}


def test_a_single_answer_has_its_verdict_and_an_answer_for_the_kl():
    example = single(ids(1, 2), ids(3, 4), False, kl=(5, 6, 7))
    answer, other = rows_of(example, estimates_kl=True)
    assert (answer.verdict, answer.estimates_kl, other.verdict, other.estimates_kl) == (-1, 0, 0, 1)
    assert other.prompt.tolist() == [1, 2] and other.answer.tolist() == [5, 6, 7]
    # where no loss wants the KL, that costs nothing
    answer, filler = rows_of(example)
    assert answer.real and not filler.real and tokens_seen([answer, filler], shares=True) == 2 + 2 + 1
    assert (filler.prompt.tolist(), filler.answer.tolist(), filler.mask.tolist()) == ([1], [2], [0])


def test_lists_are_filled_up_to_the_longest():
    example = ranked(ids(1), [ids(2), ids(3)], [1, 2], [0.5, 0.25])
    rows = rows_of(example, 4)
    assert [row.rank for row in rows] == [1, 2, 0, 0] and [row.real for row in rows] == [True, True, False, False]
    assert [row.score for row in rows[:2]] == [0.5, 0.25]
    with pytest.raises(ValueError, match="2 answers, where the run has 1 rows"):
        rows_of(example, 1)


def test_columns_say_what_a_loss_is_to_know():
    examples = [
        pair(ids(1, 2), ids(3), ids(4), margin=0.75),
        single(ids(1, 2), ids(3, 4), True),
        single(ids(5), ids(6), False),
    ]
    batch = pair_batch(examples, mini_pairs=3, estimates_kl=True)
    assert batch["verdict"].tolist() == [0, 0, 1, 0, -1, 0]
    assert batch["estimates_kl"].tolist() == [0, 0, 0, 1, 0, 1]
    assert batch["margin"].tolist() == [0.75, 0.75, 0, 0, 0, 0]
    assert batch["counted"].tolist() == [1] * 6 and batch["global_pairs"].tolist() == [3] * 6
    assert batch["global_yes"].tolist() == batch["global_no"].tolist() == [1] * 6
    # of the chosen answer and of the yes
    assert batch["mean_chosen_length"].tolist() == [1.5] * 6
    assert "rank" not in batch.keys() and "score" not in batch.keys()
    lists = pair_batch([ranked(ids(1), [ids(2, 2), ids(3)], [1, 2])], mini_pairs=1, rows_per_example=3)
    assert lists["rank"].tolist() == [1, 2, 0] and lists["score"].isnan().all()
    assert lists["place"].tolist() == [0, 1, 0]
    assert lists["counted"].tolist() == [1, 1, 0] and lists["pair_weight"].tolist() == [2] * 3
    assert lists["mean_chosen_length"].tolist() == [2] * 3
    plain = pair_batch(examples[:1], mini_pairs=1)
    assert {"verdict", "estimates_kl", "rank", "micro_batch"}.isdisjoint(plain.keys())


def test_without_a_preferred_answer_the_mean_length_is_one():
    """A mean of none would be NaN, and with it the loss of the whole mini-batch."""
    assert pair_batch([single(ids(1), ids(2), False)], mini_pairs=1)["mean_chosen_length"].tolist() == [1, 1]


def test_reference_log_probs_of_fillers_are_made_up():
    known = [[np.array([-1.0, -2.0], np.float32)]]
    batch = pair_batch([single(ids(1), ids(2, 3), True)], mini_pairs=1, reference=known)
    assert [row.tolist() for row in batch["ref_log_probs"].unbind()] == [[-1, -2], [0]]


# --- cuts --------------------------------------------------------------------------------------------------------


def groups(rng, prompts=6, answers=4, length=20):
    """All pairs of each prompt's answers, as its examples."""
    examples = []
    for number in range(prompts):
        prompt = torch.from_numpy(rng.integers(0, 50, length))
        given = [torch.from_numpy(rng.integers(0, 50, rng.integers(2, 6))) for _ in range(answers)]
        examples += [pair(prompt, a, b, number=number) for a, b in itertools.combinations(given, 2)]
    return examples


def micro_batches(batch, ranks, mini, size=2):
    """[[rows of each micro-batch] of each rank and mini-batch], as the workers cut what they get."""
    for part in tu.chunk_tensordict(batch, ranks):
        for data in tu.make_iterator(part, size * mini // ranks, 1, 0, {"shuffle": False}):
            numbers = data["micro_batch"].tolist()
            yield (
                data,
                [[at for at, other in enumerate(numbers) if other == number] for number in range(max(numbers) + 1)],
            )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("backend", ["rows", "shared_prompt"])
@pytest.mark.parametrize("budget", [60, 150, 4000])
def test_micro_batches_hold_whole_examples_and_what_the_budget_allows(ranks, backend, budget):
    examples = groups(np.random.default_rng(ranks))
    mini = 18
    settings = {"use_dynamic_bsz": True, "max_token_len_per_gpu": budget, "micro_batch_size_per_gpu": None}
    prompts = [example["number"] for example in examples]
    order = arrange([1] * len(examples), mini, ranks, prompts=prompts)
    batch = pair_batch(
        [examples[at] for at in order], mini_pairs=mini, ranks=ranks, logprob_backend=backend, **settings
    )
    cuts = list(micro_batches(batch, ranks, mini))
    # as many on one worker as on another, for each of the two mini-batches
    numbers = np.array([len(parts) for _, parts in cuts]).reshape(ranks, 2)
    assert (numbers == numbers[0]).all()
    seen = tokens = 0
    for data, parts in cuts:
        rows = [torch.cat(row).tolist() for row in zip(data["prompts"].unbind(), data["responses"].unbind())]
        assert sorted(itertools.chain(*parts)) == list(range(len(rows)))
        for part in parts:
            assert all(part[at] % 2 == 0 and part[at + 1] == part[at] + 1 for at in range(0, len(part), 2))
            there = {tuple(rows[at]) for at in part}
            beginnings = {row[:end] for row in there for end in range(1, len(row) + 1)}
            cost = len(beginnings) if backend == "shared_prompt" else sum(map(len, there))
            assert cost <= budget or len(part) == 2
            seen, tokens = seen + cost, tokens + sum(len(rows[at]) for at in part)
    assert tu.get_non_tensor_data(batch, "shared_tokens_ratio", None) == pytest.approx(seen / tokens)


def test_a_worker_with_less_has_as_many_micro_batches_as_another():
    """Each goes through a sharded model as often as the others, or they wait for each other."""
    long, short = (
        [pair(torch.full((size,), n), ids(n, 50), ids(n, 60)) for n in range(first, first + 2)]
        for size, first in ((40, 1), (5, 3))
    )
    settings = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 50}
    batch = pair_batch([*long, *short], mini_pairs=4, ranks=2, logprob_backend="shared_prompt", **settings)
    assert [len(parts) for _, parts in micro_batches(batch, 2, 4)] == [2, 2]


def test_a_group_under_a_budget_that_holds_it_is_one_micro_batch():
    examples = groups(np.random.default_rng(0))
    settings = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 45}
    batch = pair_batch(examples, mini_pairs=36, logprob_backend="shared_prompt", **settings)
    ((data, parts),) = micro_batches(batch, 1, 36)
    assert len(parts) == 6 and tu.get_non_tensor_data(batch, "torn_prompts", None) == 0
    assert all(len({data["prompt_number"][at].item() for at in part}) == 1 for part in parts)
    # 12 rows of each group cost its prompt and four answers
    assert int(data["input_ids"].offsets().diff().sum()) < 6 * (20 + 4 * 5 + 8)


def test_a_number_of_examples_cuts_between_prompts_where_that_costs_no_more_micro_batches():
    rng = np.random.default_rng(0)
    examples = [pair(ids(n, n, n), ids(*rng.integers(0, 9, 2)), ids(*rng.integers(9, 20, 2))) for n in [1, 2, 1, 2]]
    fixed = {"use_dynamic_bsz": False}
    batch = pair_batch(examples, mini_pairs=4, micro_batch_size_per_gpu=2, **fixed)
    ((data, parts),) = micro_batches(batch, 1, 4)
    assert [{data["prompt_number"][at].item() for at in part} for part in parts] == [{0}, {1}]
    # three of one prompt and one of another: pairs of micro-batches must tear, and there are no more of them
    uneven = [examples[0], examples[2], examples[0], examples[1]]
    batch = pair_batch(uneven, mini_pairs=4, micro_batch_size_per_gpu=2, **fixed)
    ((_, parts),) = micro_batches(batch, 1, 4)
    assert [len(part) for part in parts] == [4, 4]
    # verl cuts in order, as always, where nothing repeats or nothing is cut
    assert "micro_batch" not in pair_batch(examples[:2], mini_pairs=2, micro_batch_size_per_gpu=1, **fixed).keys()
    assert "micro_batch" not in pair_batch(examples, mini_pairs=4, micro_batch_size_per_gpu=4, **fixed).keys()
