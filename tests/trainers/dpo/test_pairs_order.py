"""Which pairs a step trains on, how they reach the workers, and that a pair is never torn apart on the way."""

import numpy as np
import pytest
import torch

from verl_aiops.trainers.dpo.pairs import PairOrder, arrange, load_pairs, pair_batch, pair_tokens


def _order(pairs=23, batch=4, *, seed=7, shuffle=True, data_digest="data"):
    return PairOrder(pairs, batch, seed=seed, shuffle=shuffle, data_digest=data_digest)


# --- order ---------------------------------------------------------------------------------------------------------


def test_every_epoch_is_another_permutation_of_all_pairs():
    order = _order()
    epochs = [order.epoch(number).tolist() for number in range(5)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert epochs[0] != _order(seed=8).epoch(0).tolist()


def test_the_steps_of_an_epoch_are_its_order_cut_into_batches():
    order = _order()
    assert order.steps_per_epoch == 5
    for epoch in range(3):
        steps = [order.step(1 + epoch * 5 + i).tolist() for i in range(5)]
        assert sum(steps, []) == order.epoch(epoch).tolist()[:20]  # 3 of 23 pairs are left to other epochs


def test_a_step_depends_on_seed_and_number_alone():
    whole = [_order().step(step).tolist() for step in range(1, 40)]
    order = _order()
    anew = {step: order.step(step).tolist() for step in (39, 3, 17, 3, 1)}
    assert all(whole[step - 1] == pairs for step, pairs in anew.items())
    assert all(len(set(pairs)) == 4 for pairs in whole)


def test_a_resumed_run_sees_what_an_uninterrupted_one_would_have_seen():
    before = _order()
    uninterrupted = [before.step(step).tolist() for step in range(1, 13)]
    after = _order()
    after.load_state_dict(before.state_dict())
    assert [after.step(step).tolist() for step in range(7, 13)] == uninterrupted[6:]


def test_without_shuffle_every_epoch_is_the_files_order():
    order = _order(shuffle=False)
    assert order.step(1).tolist() == [0, 1, 2, 3]
    assert order.step(6).tolist() == [0, 1, 2, 3]
    assert order.epoch(3).tolist() == list(range(23))


@pytest.mark.parametrize(
    "key, now", [("pairs", 24), ("batch", 5), ("seed", 8), ("shuffle", False), ("data_digest", "other")]
)
def test_other_data_or_another_order_is_refused_on_resume(key, now):
    state = _order().state_dict()
    with pytest.raises(ValueError) as error:
        _order(**{key: now}).load_state_dict(state)
    assert f"{key}: {state[key]!r} then, {now!r} now" in str(error.value)
    assert "trainer.resume_mode=disable" in str(error.value)


def test_a_state_of_another_loader_is_refused():
    with pytest.raises(ValueError, match="pairs: None then, 23 now"):
        _order().load_state_dict({"_snapshot": {}, "_steps_since_snapshot": 3})


# --- prompts with several examples ---------------------------------------------------------------------------------


def _prompts_of(sizes, seed=0):
    """Prompt numbers of a file in which a prompt's examples do not stand side by side."""
    prompts = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(prompts)


def _together(sizes, batch=4, *, seed=7, shuffle=True):
    prompts = _prompts_of(sizes)
    return PairOrder(len(prompts), batch, seed=seed, shuffle=shuffle, data_digest="data", prompts=prompts), prompts


@pytest.mark.parametrize("shuffle", [True, False])
def test_data_in_which_no_prompt_repeats_is_taken_in_the_order_that_it_always_was(shuffle):
    known = {True: [[15, 4, 18, 3], [14, 10, 20, 19]], False: [[0, 1, 2, 3], [0, 1, 2, 3]]}[shuffle]
    plain = _order(shuffle=shuffle)
    numbered = PairOrder(23, 4, seed=7, shuffle=shuffle, data_digest="data", prompts=np.arange(23)[::-1])
    assert [plain.step(step).tolist() for step in (1, 6)] == known
    assert [numbered.step(step).tolist() for step in range(1, 20)] == [plain.step(s).tolist() for s in range(1, 20)]
    assert numbered.state_dict() == plain.state_dict() and numbered.prompts is None
    assert np.random.default_rng([7, 0]).permutation(23).tolist() == _order().epoch(0).tolist()


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_prompts_examples_are_in_one_step(shuffle):
    order, prompts = _together([2] * 6 + [4, 1, 3, 2, 2, 4], shuffle=shuffle)
    for epoch in range(4):
        steps = [order.step(1 + epoch * order.steps_per_epoch + at) for at in range(order.steps_per_epoch)]
        taken = np.concatenate(steps)
        assert len(set(taken.tolist())) == len(taken)
        of_step = [set(prompts[step].tolist()) for step in steps]
        assert sum(map(len, of_step)) == len(set.union(*of_step))
    assert sorted(order.epoch(2).tolist()) == list(range(len(prompts)))


def test_prompts_are_shuffled_and_an_epoch_is_the_same_however_it_is_come_to():
    order, _ = _together([2] * 10)
    epochs = [order.epoch(number).tolist() for number in (0, 1, 2)]
    assert len(set(map(tuple, epochs))) == 3
    other, _ = _together([2] * 10)
    assert [other.epoch(number).tolist() for number in (2, 0, 1)] == [epochs[2], epochs[0], epochs[1]]
    other.epoch(0)[:] = 0
    assert other.epoch(0).tolist() == epochs[0]


def test_a_checkpoint_of_data_that_was_taken_pair_by_pair_is_refused_with_the_reason():
    order, _ = _together([2] * 10)
    state = {k: v for k, v in order.state_dict().items() if k != "prompts"}
    with pytest.raises(ValueError, match="one by one, where a prompt's are taken together now: 10 prompts have 20"):
        order.load_state_dict(state)
    order.load_state_dict(order.state_dict())
    plain = _order()
    plain.load_state_dict({"pairs": 23, "batch": 4, "seed": 7, "shuffle": True, "data_digest": "data"})


def test_files_have_their_shares_of_each_epoch_and_prompts_stay_together():
    files, prompts = np.repeat([0, 1], [24, 8]), np.arange(32) // 2
    even = {"seed": 7, "shuffle": True, "data_digest": "data", "prompts": prompts, "files": files}
    order = PairOrder(32, 4, shares=[0.5, 0.5], **even)
    for epoch in range(3):
        drawn = order.epoch(epoch)
        assert (files[drawn] == 1).sum() == 16
        steps = [prompts[order.step(1 + epoch * 8 + at)].tolist() for at in range(8)]
        assert all(len(set(step)) == 2 for step in steps)
    assert order.epoch(0).tolist() != order.epoch(1).tolist()
    assert order.state_dict()["shares"] == [0.5, 0.5]
    with pytest.raises(ValueError, match="shares"):
        order.load_state_dict(PairOrder(32, 4, shares=[0.25, 0.75], **even).state_dict())


# --- arrangement over ranks ----------------------------------------------------------------------------------------


def _mini_batches_on_ranks(arranged, mini_pairs, ranks):
    """[[pairs of rank 0, of rank 1, ...] for each mini-batch], as the workers cut their contiguous parts."""
    parts = np.asarray(arranged).reshape(ranks, -1)
    share = mini_pairs // ranks
    return [[part[at : at + share].tolist() for part in parts] for at in range(0, parts.shape[1], share)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_a_mini_batch_holds_the_same_pairs_for_any_number_of_ranks(ranks):
    lengths = np.random.default_rng(ranks).integers(10, 3000, size=36).tolist()
    minis = _mini_batches_on_ranks(arrange(lengths, 12, ranks), 12, ranks)
    assert len(minis) == 3
    for number, shares in enumerate(minis):
        assert sorted(sum(shares, [])) == list(range(12 * number, 12 * number + 12))
        assert {len(share) for share in shares} == {12 // ranks}


def test_one_rank_keeps_the_order():
    assert arrange([5, 900, 3, 77], 2, 1) == [0, 1, 2, 3]


def test_tokens_are_balanced_over_ranks_inside_a_mini_batch():
    lengths = [1000, 1000, 10, 10] * 2  # in plain order rank 0 would get both long pairs of a mini-batch
    for shares in _mini_batches_on_ranks(arrange(lengths, 4, 2), 4, 2):
        assert [sum(lengths[i] for i in share) for share in shares] == [1010, 1010]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_prompts_examples_are_on_one_rank_and_in_one_mini_batch(ranks):
    prompts = np.repeat(np.arange(12), [2, 1, 2, 1, 1, 1] * 2)
    lengths = np.random.default_rng(ranks).integers(10, 300, size=len(prompts)).tolist()
    arranged = arrange(lengths, 8, ranks, prompts=prompts.tolist(), cost=lambda pairs: sum(lengths[at] for at in pairs))
    minis = _mini_batches_on_ranks(arranged, 8, ranks)
    assert [sorted(sum(shares, [])) for shares in minis] == [list(range(8)), list(range(8, 16))]
    for shares in minis:
        of_rank = [set(prompts[share].tolist()) for share in shares]
        assert sum(map(len, of_rank)) == len(set.union(*of_rank)) and {len(share) for share in shares} == {8 // ranks}


def test_a_prompt_waits_for_a_mini_batch_that_holds_all_of_it():
    arranged = arrange([1] * 8, 4, 1, prompts=list("aaabbbcd"))
    assert arranged == [0, 1, 2, 6, 3, 4, 5, 7]


# --- batches -------------------------------------------------------------------------------------------------------


def _example(number, prompt, chosen, rejected, *, weight=1.0, untrained=0):
    """Token ids tell pair and part; the first `untrained` tokens of both answers are masked out."""

    def ids(part, length):
        return torch.full((length,), 100 * number + part)

    def mask(length):
        return (torch.arange(length) >= untrained).long()

    answers = {
        f"{side}_ids": ids(part, n) for part, (side, n) in enumerate((("chosen", chosen), ("rejected", rejected)), 1)
    }
    masks = {"chosen_mask": mask(chosen), "rejected_mask": mask(rejected)}
    return {"prompt_ids": ids(0, prompt), **answers, **masks, "weight": weight}


def _examples(count):
    return [_example(i, 3 + i % 4, 2 + i, 1 + (3 * i) % 7, weight=0.5 + i) for i in range(count)]


def test_rows_alternate_chosen_and_rejected_with_their_own_prompt():
    batch = pair_batch([_example(1, 3, 2, 4, weight=0.5), _example(2, 1, 3, 1, untrained=1)], mini_pairs=2)
    assert [row.tolist() for row in batch["input_ids"].unbind()] == [
        [100] * 3 + [101] * 2,
        [100] * 3 + [102] * 4,
        [200] + [201] * 3,
        [200] + [202],
    ]
    assert [row.tolist() for row in batch["position_ids"].unbind()] == [list(range(n)) for n in (5, 7, 4, 2)]
    assert [row.tolist() for row in batch["prompts"].unbind()] == [[100] * 3] * 2 + [[200]] * 2
    assert [row.tolist() for row in batch["responses"].unbind()] == [[101] * 2, [102] * 4, [201] * 3, [202]]
    assert [row.tolist() for row in batch["response_mask"].unbind()] == [[1, 1], [1] * 4, [0, 1, 1], [0]]
    assert batch["prompt_lengths"].tolist() == [3, 3, 1, 1]
    assert batch["pair_weight"].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert batch["counted"].tolist() == [1.0] * 4
    assert "ref_log_probs" not in batch.keys()


def test_reference_log_probs_lie_beside_their_answers():
    known = [(np.array([-1.0, -2.0], np.float32), np.array([-3.0], np.float32)), (np.array([-4.0], np.float32),) * 2]
    batch = pair_batch([_example(1, 3, 2, 1), _example(2, 1, 1, 1)], mini_pairs=2, reference=known)
    assert [row.tolist() for row in batch["ref_log_probs"].unbind()] == [[-1, -2], [-3], [-4], [-4]]
    assert batch["ref_log_probs"].dtype == torch.float32


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_mean_chosen_length_is_that_of_the_rows_whole_mini_batch(ranks):
    examples = _examples(16)
    trained = [len(example["chosen_ids"]) for example in examples]
    arranged = arrange(trained, 8, ranks)
    batch = pair_batch([examples[i] for i in arranged], mini_pairs=8, ranks=ranks)
    means = [np.mean(trained[:8]), np.mean(trained[8:])]
    assert means[0] != means[1]
    assert batch["mean_chosen_length"].tolist() == [pytest.approx(means[i // 8]) for i in arranged for _ in range(2)]


def test_mean_chosen_length_counts_trained_tokens_of_counted_pairs():
    examples = [_example(1, 2, 4, 9, untrained=1), _example(2, 2, 6, 9), _example(1, 2, 4, 9, untrained=1)]
    batch = pair_batch(examples, mini_pairs=3, counted=[True, True, False])
    assert batch["mean_chosen_length"].tolist() == [4.5] * 6
    assert batch["counted"].tolist() == [1, 1, 1, 1, 0, 0]
    assert batch["global_pairs"].unique().tolist() == [2.0]


def test_the_mean_is_over_a_mini_batch_not_over_the_step():
    assert pair_batch(_examples(8), mini_pairs=4)["global_pairs"].tolist() == [4.0] * 16


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_cut_of_verl_tears_a_pair_apart(ranks, dynamic):
    """Split over ranks, into mini-batches and into micro-batches with verl's own functions."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.utils import prepare_micro_batches

    examples = _examples(16)
    arranged = arrange([len(e["chosen_ids"]) for e in examples], 8, ranks)
    settings = {"use_dynamic_bsz": dynamic, "micro_batch_size_per_gpu": 2, "max_token_len_per_gpu": 90}
    batch = pair_batch([examples[i] for i in arranged], mini_pairs=8, ranks=ranks, **settings)
    minis: dict[int, list[int]] = {}
    micro_batches = 0
    for part in tu.chunk_tensordict(batch, ranks):
        cut = tu.make_iterator(part, 2 * 8 // ranks, epochs=1, seed=1, dataloader_kwargs={"shuffle": False})
        for number, mini in enumerate(cut):
            for micro in prepare_micro_batches(mini)[0]:
                micro_batches += 1
                first = [row[0].item() for row in micro["responses"].unbind()]
                pairs = [token // 100 for token in first]
                assert pairs[0::2] == pairs[1::2]
                assert [token % 100 for token in first] == [1, 2] * (len(first) // 2)
                minis.setdefault(number, []).extend(pairs[0::2])
    assert {number: sorted(pairs) for number, pairs in minis.items()} == {0: list(range(8)), 1: list(range(8, 16))}
    assert micro_batches > 2 * ranks


# --- loading -------------------------------------------------------------------------------------------------------


def _data(**settings):
    from omegaconf import OmegaConf

    defaults = {
        "max_prompt_length": 64,
        "max_response_length": 64,
        "truncation": "error",
        "shuffle": True,
        "seed": None,
    }
    return OmegaConf.create({**defaults, "apply_chat_template_kwargs": None, "val_files": None, **settings})


def _rows(count):
    return [{"prompt": f"question {i}?", "chosen": f"yes {i}", "rejected": f"no {i}, sorry"} for i in range(count)]


def test_pairs_are_loaded_from_one_file_or_several_and_cost_two_rows(tokenizer, write_rows):
    one = write_rows(_rows(6), "one.jsonl")
    two = write_rows(_rows(3), "two.parquet")
    dataset = load_pairs(_data(train_files=[one, two]), tokenizer, "train")
    assert len(dataset) == 9
    assert len(load_pairs(_data(val_files=two), tokenizer, "val")) == 3
    cost = pair_tokens(dataset)
    first = dataset[0]
    assert cost[0] == 2 * len(first["prompt_ids"]) + len(first["chosen_ids"]) + len(first["rejected_ids"])
    assert cost[0] == pair_batch([first], mini_pairs=1)["input_ids"].values().numel()


def test_max_samples_takes_so_many_and_a_limit_the_first(tokenizer, write_rows):
    file = write_rows(_rows(30))
    some = load_pairs(_data(train_files=file, train_max_samples=10), tokenizer, "train")
    again = load_pairs(_data(train_files=file, train_max_samples=10), tokenizer, "train")
    assert len(some) == 10 and some.identity() == again.identity()
    in_order = load_pairs(_data(train_files=file, train_max_samples=10, shuffle=False), tokenizer, "train")
    limited = load_pairs(_data(train_files=file, train_max_samples=10), tokenizer, "train", limit=4)
    assert [in_order[i]["id"] for i in range(4)] == [limited[i]["id"] for i in range(4)]
    assert len(limited) == 4
    assert len(load_pairs(_data(train_files=file, train_max_samples=-1), tokenizer, "train")) == 30


def test_other_column_names_are_read_from_the_configuration(tokenizer, write_rows):
    file = write_rows([{"question": "why?", "better": "because", "worse": "no idea"}])
    names = {"prompt_key": "question", "chosen_key": "better", "rejected_key": "worse"}
    assert len(load_pairs(_data(train_files=file, **names), tokenizer, "train")) == 1
