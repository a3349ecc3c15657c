"""What belongs to one prompt stays together where a batch is cut: brute force and properties."""

import itertools

import numpy as np
import pytest

from verl_aiops.trainers.together import by_prompt, in_blocks, shared_out, torn


def blocks(order, room):
    return [order[at : at + room] for at in range(0, len(order), room)]


def data(seed, sizes=(1, 2, 3, 4, 6)):
    """Prompts with numbers of items of those sizes, the items of a prompt not side by side."""
    rng = np.random.default_rng(seed)
    prompts = [number for number in range(rng.integers(2, 12)) for _ in range(rng.choice(sizes))]
    rng.shuffle(prompts)
    return prompts, rng


def test_items_are_found_by_their_prompt():
    assert by_prompt("abcab") == [[0, 3], [1, 4], [2]]


@pytest.mark.parametrize("seed", range(30))
def test_every_item_is_in_one_block_and_no_prompt_is_torn_for_want_of_looking(seed):
    prompts, rng = data(seed)
    room = int(rng.integers(1, 9))
    order = in_blocks(prompts, room)
    assert sorted(order) == list(range(len(prompts)))
    # a prompt's items keep their order
    for items in by_prompt(prompts):
        assert [at for at in order if at in set(items)] == items
    # at most one prompt goes on from a block to the next, and only where none of those left fill the block to the end
    cut = blocks(order, room)
    for number, (one, other) in enumerate(itertools.pairwise(cut)):
        crossing = {prompts[at] for at in one} & {prompts[at] for at in other}
        assert len(crossing) <= 1
        if crossing:
            there = list(itertools.chain(*cut[number:]))
            sizes = [len(items) for items in by_prompt([prompts[at] for at in there])]
            assert room not in made_up(sizes) or sizes[0] > room


def made_up(sizes):
    """Brute force: the sums of all choices."""
    return {sum(chosen) for number in range(len(sizes) + 1) for chosen in itertools.combinations(sizes, number)}


def test_prompts_that_are_there_once_stay_where_they_are():
    assert in_blocks([5, 3, 9, 1], 3) == [0, 1, 2, 3]


def test_a_prompt_waits_for_a_block_that_it_fits_into():
    assert in_blocks("aabbbcc", 4) == [0, 1, 5, 6, 2, 3, 4]
    # the first alone would leave a place that none of the others fits into
    assert in_blocks("aaabbcc", 4) == [3, 4, 5, 6, 0, 1, 2]


def test_a_prompt_that_no_block_holds_is_torn_once_a_block():
    assert in_blocks("aaaaab", 4) == [0, 1, 2, 3, 4, 5]


def cost_of(prompts, own, shared=100):
    return lambda items: shared + sum(own[at] for at in items)


@pytest.mark.parametrize("seed", range(40))
def test_parts_are_equal_and_hold_every_item_once(seed):
    prompts, rng = data(seed)
    parts = int(rng.choice([1, 2, 3, 4]))
    prompts += list(range(100, 100 + -len(prompts) % parts))
    own = rng.integers(1, 50, len(prompts)).tolist()
    shares = shared_out(prompts, parts, cost_of(prompts, own))
    assert sorted(itertools.chain(*shares)) == list(range(len(prompts)))
    assert {len(share) for share in shares} == {len(prompts) // parts}
    assert all(share == sorted(share) for share in shares)


def least_torn(sizes, parts):
    """Brute force over whole prompts: 0 where some way of giving them out tears none, else None."""
    room = sum(sizes) // parts
    for way in itertools.product(range(parts), repeat=len(sizes)):
        if all(sum(s for s, part in zip(sizes, way) if part == number) == room for number in range(parts)):
            return 0
    return None


@pytest.mark.parametrize("seed", range(60))
def test_two_parts_tear_no_prompt_where_none_need_be_torn(seed):
    prompts, _ = data(seed)
    prompts += [99] * (len(prompts) % 2)
    sizes = [len(items) for items in by_prompt(prompts)]
    shares = shared_out(prompts, 2, cost_of(prompts, [1] * len(prompts)))
    if least_torn(sizes, 2) == 0:
        assert torn(prompts, shares) == 0
    else:
        assert torn(prompts, shares) >= 1


def test_prompts_go_to_one_part_where_largest_first_would_tear_one():
    shares = shared_out("aaabbbccddee", 2, len)
    assert torn("aaabbbccddee", shares) == 0


def test_tokens_are_balanced_as_the_model_sees_them():
    """Six items of a long prompt cost it once: by their rows it would be six times as long."""
    prompts = ["long"] * 4 + ["b"] * 4 + ["c"] * 4 + ["d"] * 4
    shared = {"long": 1000, "b": 900, "c": 100, "d": 10}
    shares = shared_out(prompts, 2, lambda items: shared[prompts[items[0]]] + len(items))
    assert {frozenset(prompts[at] for at in share) for share in shares} == {
        frozenset(("long", "d")),
        frozenset(("b", "c")),
    }


def test_a_prompt_with_more_items_than_a_part_holds_is_spread():
    shares = shared_out("aaaaaab" + "c", 4, len)
    assert sorted(map(len, shares)) == [2] * 4 and torn("aaaaaabc", shares) == 2
