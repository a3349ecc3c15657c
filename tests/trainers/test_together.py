"""Which rows stand side by side when a batch is cut for workers and mini-batches."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_aiops.trainers.together import times_torn, together


@st.composite
def batches(draw, equal=False):
    """(prompts of the rows, in any order; tokens of each row's prompt and answer; workers; mini-batches)."""
    workers, minis = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    parts = workers * minis
    if equal:
        n = draw(st.integers(1, 5))
        sizes = [n] * (parts * draw(st.integers(1, 4)))
    else:
        sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
        # rows that only fill the batch up are a prompt of their own
        sizes += [-sum(sizes) % parts] if sum(sizes) % parts else []
    prompts = draw(st.permutations([prompt for prompt, size in enumerate(sizes) for _ in range(size)]))
    lengths = draw(st.lists(st.integers(1, 2000), min_size=len(sizes), max_size=len(sizes)))
    answers = draw(st.lists(st.integers(1, 400), min_size=len(prompts), max_size=len(prompts)))
    return prompts, [lengths[prompt] for prompt in prompts], answers, workers, minis


def arranged(batch):
    prompts, lengths, answers, workers, minis = batch
    order = together(prompts, lengths, answers, workers=workers, mini_batches=minis)
    return order, [prompts[at] for at in order]


@given(batches())
def test_every_row_is_there_once_and_few_prompts_are_torn(batch):
    prompts, _, _, workers, minis = batch
    order, placed = arranged(batch)
    assert sorted(order) == list(range(len(prompts)))
    assert times_torn(placed, workers * minis) <= workers * minis - 1
    # over workers alone it is a matter of the workers alone
    assert times_torn(placed, workers) <= workers - 1


@given(batches(equal=True))
def test_none_is_torn_where_it_divides(batch):
    prompts, _, _, workers, minis = batch
    _, placed = arranged(batch)
    assert times_torn(placed, workers * minis) == 0
    # and the rows of one stand side by side
    assert len(list(itertools.groupby(placed))) == len(set(prompts))


@given(batches())
def test_rows_of_a_prompt_keep_their_order_and_stand_side_by_side_in_each_part(batch):
    prompts, _, _, workers, minis = batch
    order, placed = arranged(batch)
    size = len(prompts) // (workers * minis)
    for start in range(0, len(prompts), size):
        part = placed[start : start + size]
        assert len(list(itertools.groupby(part))) == len(set(part))
        for _, rows in itertools.groupby(order[start : start + size], key=lambda at: prompts[at]):
            rows = list(rows)
            assert rows == sorted(rows)


def seen(batch, order, parts):
    """Tokens that the model sees of each part."""
    prompts, lengths, answers, _, _ = batch
    size = len(prompts) // parts
    cut = [order[at * size : (at + 1) * size] for at in range(parts)]
    return [sum(answers[at] for at in part) + sum({prompts[at]: lengths[at] for at in part}.values()) for part in cut]


def test_tokens_are_balanced_with_each_prompt_counted_once():
    # by rows, prompts 0 and 1 weigh the same as 2 and 3: 2 x (1000 + 10); with the prompt once they do not
    lengths = [1000, 1000, 10, 10]
    answers = [10, 10, 1000, 1000]
    prompts = [prompt for prompt in range(4) for _ in range(2)]
    batch = (prompts, [lengths[p] for p in prompts], [answers[p] for p in prompts], 2, 1)
    order, _ = arranged(batch)
    assert seen(batch, order, 2) == [3030, 3030]


@pytest.mark.parametrize("missing", [0, 1, 5])
def test_workers_have_about_as_many_tokens_as_each_other(missing):
    lengths = [100 + 53 * at % 900 for at in range(32)]
    prompts = [prompt for prompt in range(32) for _ in range(8)][missing:] + [32] * missing
    batch = (prompts, [*lengths, 127], [50 + 31 * at % 200 for at in range(len(prompts))], 4, 2)
    batch = (prompts, [batch[1][p] for p in prompts], *batch[2:])
    order, placed = arranged(batch)
    assert times_torn(placed, 8) <= (7 if missing else 0)
    for parts in (4, 8):
        tokens = seen(batch, order, parts)
        assert max(tokens) < 1.1 * min(tokens)


def test_a_fault_is_torn_as_little_as_possible():
    """Three prompts of four rows on two workers: one of them in halves."""
    prompts = [0] * 4 + [1] * 4 + [2] * 4
    batch = (prompts, [100, 100, 100, 100, 200, 200, 200, 200, 50, 50, 50, 50], [10] * 12, 2, 1)
    _, placed = arranged(batch)
    assert times_torn(placed, 2) == 1
    # the cheapest prompt
    assert len(set(placed[:6]) & set(placed[6:]) - {2}) == 0


def test_rows_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="7 rows do not make 2 x 2 parts"):
        together([0] * 7, [1] * 7, [1] * 7, workers=2, mini_batches=2)


def test_torn_prompts_are_counted_by_how_often_they_come_again():
    assert times_torn("aabb", 2) == 0 and times_torn("abab", 2) == 2 and times_torn("aaaa", 4) == 3
