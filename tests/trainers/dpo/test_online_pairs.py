"""Online DPO's pairs: final outputs, self-play, and batches that hold every pair once."""

import math

import numpy as np
import pytest
import torch

from verl_aiops.losses import label_groups
from verl_aiops.rollout.rounds.turns import TemplateTurns
from verl_aiops.trainers.dpo.online_pairs import (
    Answer,
    labelled,
    laid_out,
    pair_example,
    plan_batch,
    reference_answer,
    self_play_pairs,
    shuffled,
)
from verl_aiops.trainers.dpo.pairs import arrange, pair_batch

STOPS = frozenset({2})


def answer(uid="p", ids=(5, 6, 2), mask=None, score=0.0, prompt=(1, 4), **more):
    mask = [1] * len(ids) if mask is None else mask
    return Answer(uid, torch.tensor(prompt), torch.tensor(ids), torch.tensor(mask), score, **more)


def test_content_is_what_the_model_wrote():
    """Instructions between rounds and the prompt do not make answers differ."""
    one = answer(ids=(5, 9, 9, 6), mask=[1, 0, 0, 1])
    assert one.content == answer(ids=(5, 8, 6), mask=[1, 0, 1]).content and one.length == 2
    assert one.content != answer(ids=(5, 9, 6), mask=[1, 1, 1]).content
    assert answer(ids=(5, 2)).ended(STOPS) and not answer(ids=(5, 6)).ended(STOPS) and not answer(ids=()).ended(STOPS)


def test_rows_of_the_queue():
    row = {
        "uid": "u",
        "prompts": torch.tensor([1]),
        "responses": torch.tensor([3, 2]),
        "response_mask": torch.tensor([1, 1]),
        "rm_scores": torch.tensor([0.0, 0.75]),
        "extra_fields": {"round_cut": [0]},
    }
    made = Answer.from_row(row)
    assert made.score == 0.75 and made.extra == {"round_cut": [0]} and made.rollout_logps is None
    assert math.isnan(Answer.from_row({**row, "rm_scores": None}).score)
    assert math.isnan(Answer.from_row({**row, "rm_scores": torch.tensor([0.0, math.nan])}).score)


def test_labelled_pairs_are_those_of_the_groups():
    answers = [answer("a", (5, 2), score=0.1), answer("b", (6, 2), score=0.2), answer("a", (7, 2), score=0.9)]
    labels = label_groups([a.score for a in answers], [a.uid for a in answers])
    assert labelled(answers, labels) == [(answers[2], answers[0])]


def test_a_pair_brings_the_gap_of_its_scores_where_a_loss_asks_for_it():
    better, worse = answer(score=0.9), answer(ids=(7, 2), score=0.25)
    assert pair_example(better, worse, scored=True)["margin"] == 0.65
    assert "margin" not in pair_example(better, worse)


def test_the_datas_answer_is_what_the_policy_would_have_sampled(tokenizer):
    """Rendered by the template, token by token; trained are the texts and the tokens that end them."""
    turns = TemplateTurns(tokenizer)
    info = {"answers": ["It says full.", '{"service": "a"}'], "rounds": ["Now JSON."]}
    asked = [{"role": "user", "content": "logs"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    made = reference_answer(answer(prompt=prompt, info=info), turns, STOPS)
    conversation = [
        *asked,
        {"role": "assistant", "content": info["answers"][0]},
        {"role": "user", "content": "Now JSON."},
        {"role": "assistant", "content": info["answers"][1]},
    ]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert tokenizer.decode([*prompt, *made.response_ids.tolist()]) + "\n" == rendered
    trained = tokenizer.decode(made.response_ids[made.mask > 0])
    assert trained == 'It says full.<|im_end|>{"service": "a"}<|im_end|>'
    assert made.ended(STOPS) and math.isnan(made.score)


def test_self_play_pairs(tokenizer):
    turns = TemplateTurns(tokenizer)
    right = tokenizer.encode("yes", add_special_tokens=False) + [2]
    info = {"answers": ["yes"], "rounds": []}
    answers = [answer("a", (5, 2), info=info), answer("a", right, info=info), answer("b", right, info=info)]
    labels, pairs = self_play_pairs(answers, turns, STOPS)
    assert [rejected for _, rejected in pairs] == [answers[0]]
    assert pairs[0][0].response_ids.tolist() == right
    assert (labels.groups, labels.identical, labels.groups_with_pair) == (2, 1, 1)
    with pytest.raises(ValueError, match=r"expected 1 texts, one for each round, found 0.*build-rl"):
        self_play_pairs([answer("a")], turns, STOPS)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 3, 4])
def test_every_pair_is_in_one_mini_batch_and_shapes_fit_verl(dynamic, ranks, micro):
    for pairs in range(1, 40):
        plan = plan_batch(pairs, mini_pairs=8, ranks=ranks, micro_pairs=micro, dynamic=dynamic)
        counted = [at for at, real in zip(plan.order, plan.counted) if real]
        assert sorted(counted) == list(range(pairs))
        assert len(plan.order) % plan.mini_pairs == 0 and plan.mini_pairs % ranks == 0
        minis = [plan.counted[at : at + plan.mini_pairs] for at in range(0, len(plan.order), plan.mini_pairs)]
        assert all(1 <= sum(mini) <= 8 for mini in minis)
        assert max(map(sum, minis)) - min(map(sum, minis)) <= 1, "optimizer steps see as many pairs each"
        if dynamic:
            assert plan.mini_pairs - max(map(sum, minis)) < ranks
        else:
            assert (plan.mini_pairs // ranks) % plan.micro_pairs == 0 and plan.micro_pairs <= micro
            assert plan.mini_pairs - max(map(sum, minis)) < ranks * plan.micro_pairs


def test_a_batch_has_both_sides_and_counts_per_mini_batch():
    pairs = [(answer(ids=(5, n, 2), prompt=(1,)), answer(ids=(6, 2), prompt=(1, 3))) for n in range(10, 15)]
    plan = plan_batch(5, mini_pairs=4, ranks=1, micro_pairs=1, dynamic=False)
    arranged = arrange([1] * len(plan.order), plan.mini_pairs, 1)
    batch = pair_batch(
        [pair_example(*pairs[plan.order[at]]) for at in arranged],
        mini_pairs=plan.mini_pairs,
        counted=[plan.counted[at] for at in arranged],
    )
    rows = [row.tolist() for row in batch["input_ids"].unbind()]
    assert rows[0] == [1, 5, 10, 2] and rows[1] == [1, 3, 6, 2]
    assert batch["prompt_lengths"].tolist()[:2] == [1, 2]
    assert batch["global_pairs"].tolist() == [3.0] * 6 + [2.0] * 6
    assert batch["counted"].tolist() == [1.0] * 10 + [0.0] * 2


@pytest.mark.parametrize("dynamic", [False, True])
def test_pairs_of_a_prompt_stand_together_in_their_mini_batch(dynamic):
    pairs = [(answer(ids=(5, n, 2), prompt=(1, n % 3)), answer(ids=(6, 2), prompt=(1, n % 3))) for n in range(11)]
    plan = plan_batch(11, mini_pairs=8, ranks=1, micro_pairs=4, dynamic=dynamic)
    order = np.random.default_rng(0).permutation(11)
    laid = laid_out(pairs, order, plan)
    for start in range(0, len(laid), plan.mini_pairs):
        mini, planned = laid[start : start + plan.mini_pairs], plan.order[start : start + plan.mini_pairs]
        assert sorted(id(pair) for pair, _ in mini) == sorted(id(pairs[order[at]]) for at in planned)
        prompts = [int(pair[0].prompt_ids[1]) for pair, _ in mini]
        assert prompts == sorted(prompts)
        real = [pair for pair, counts in mini if counts]
        assert len(real) == sum(plan.counted[start : start + plan.mini_pairs]) == len({id(pair) for pair in real})


def test_pairs_of_one_prompt_are_shuffled_together_into_one_mini_batch():
    answers = {name: answer(name, prompt=(at,)) for at, name in enumerate("abcdef")}
    pairs = [(answers[name], answers[name]) for name in "abcdef" for _ in range(3)]
    orders = [shuffled(pairs, seed=seed, room=6) for seed in range(4)]
    assert len(set(map(tuple, orders))) == 4
    for order in orders:
        assert sorted(order) == list(range(18))
        names = [pairs[at][0].uid for at in order]
        assert all(len(set(names[start : start + 6])) == 2 for start in range(0, 18, 6))
    # one pair a prompt: the order that it always was
    single = [(answer, answer) for answer in answers.values()]
    assert shuffled(single, seed=5, room=2) == np.random.default_rng([5]).permutation(6).tolist()


@pytest.mark.parametrize(
    "chosen, rejected, like",
    [
        ({}, {}, True),
        ({"rm": 0.0}, {"rm": 1.0}, True),
        ({"rm_member_0": 2.0, "rm_member_1": 1.0}, {"rm_member_0": 1.0, "rm_member_1": 0.5}, True),
        ({"rm_member_0": 2.0, "rm_member_1": 0.5}, {"rm_member_0": 1.0, "rm_member_1": 0.5}, False),
        ({"rm_member_0": 2.0, "rm_member_1": math.nan}, {"rm_member_0": 1.0, "rm_member_1": 0.5}, False),
        ({"rm_member_0": 2.0}, {"rm_member_0": 1.0, "rm_member_1": 0.5}, False),
    ],
)
def test_members_of_an_ensemble_agree_where_each_has_the_order(chosen, rejected, like):
    from verl_aiops.trainers.dpo.online_pairs import Answer, agreed

    ids = torch.tensor([1])
    pair = [Answer("u", ids, ids, ids, extra={"reward_extra_info": parts}) for parts in (chosen, rejected)]
    assert agreed(*pair) is like
