"""Micro-batches of rows that share prompts: nothing lost, limits kept, as few prompts torn as can be."""

import itertools

import numpy as np
import pytest

from verl_aiops.trainers.logprobs.micro_batches import cut


def groups(rng, prompts, n, length=12, spread=4):
    """Rows of several prompts, shuffled."""
    beginnings = [rng.integers(0, 50, length + rng.integers(spread)) for _ in range(prompts)]
    rows = [(p, rng.integers(0, 50, rng.integers(1, 6))) for p in beginnings for _ in range(n)]
    rng.shuffle(rows)
    return [p for p, _ in rows], [a for _, a in rows]


def tree_tokens(rows):
    """Brute force: different beginnings."""
    return len({tuple(row[: at + 1].tolist()) for row in rows for at in range(len(row))})


@pytest.mark.parametrize("seed", range(40))
def test_every_row_is_in_one_micro_batch_and_none_is_over_the_limit(seed):
    rng = np.random.default_rng(seed)
    prompts, answers = groups(rng, int(rng.integers(1, 5)), int(rng.integers(1, 5)))
    rows = [np.concatenate(row) for row in zip(prompts, answers)]
    most_tokens, most_rows = rng.choice([20, 40, 80]), rng.choice([1, 3, 8])
    for limits in ({"most_tokens": most_tokens}, {"most_rows": most_rows}, dict(most_tokens=60, most_rows=3), {}):
        found = cut(prompts, answers, **limits)
        assert sorted(itertools.chain(*found.rows)) == list(range(len(rows)))
        seen = [tree_tokens([rows[at] for at in part]) for part in found.rows]
        assert sum(seen) == found.seen and found.tokens == sum(map(len, rows))
        for part, tokens in zip(found.rows, seen):
            assert len(part) <= limits.get("most_rows", len(rows))
            assert tokens <= limits.get("most_tokens", found.tokens) or len(part) == 1
        shared = [
            {prompts[at].tobytes() for at in one} & {prompts[at].tobytes() for at in other}
            for one, other in zip(found.rows, found.rows[1:])
        ]
        assert found.torn == sum(map(bool, shared))


def test_a_prompt_is_torn_only_where_its_rows_are_too_many():
    rng = np.random.default_rng(0)
    prompts, answers = groups(rng, 6, 4, length=30, spread=1)
    # a group has 30 tokens of its prompt and at most 20 of its answers
    assert cut(prompts, answers, most_tokens=50).torn == 0
    assert cut(prompts, answers, most_rows=4).torn == 0 and len(cut(prompts, answers, most_rows=4).rows) == 6
    torn = cut(prompts, answers, most_rows=3)
    assert torn.torn == 6 and len(torn.rows) == 12
    assert torn.seen == cut(prompts, answers, most_rows=4).seen + 6 * 30


def test_beginnings_that_prompts_share_count_once():
    start = np.arange(20)
    prompts = [np.append(start, last) for last in (1, 1, 2, 2)]
    answers = [np.array([at, 9]) for at in range(4)]
    assert cut(prompts, answers).seen == 20 + 2 + 4 * 2


@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_as_many_micro_batches_as_another_worker_needs(number):
    rng = np.random.default_rng(1)
    prompts, answers = groups(rng, 2, 4)
    found = cut(prompts, answers, at_least=number)
    assert len(found.rows) == number and all(found.rows)
    assert found.torn == max(0, number - 2)


def units_of(rng, prompts, unit):
    """Rows of several prompts, `unit` of one prompt side by side, some of them equal."""
    beginnings = [rng.integers(0, 50, 12 + rng.integers(4)) for _ in range(prompts)]
    units = [(p, [rng.integers(0, 3, rng.integers(1, 4)) for _ in range(unit)]) for p in beginnings for _ in range(4)]
    rng.shuffle(units)
    return [p for p, answers in units for _ in answers], [answer for _, answers in units for answer in answers]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shares", [True, False])
def test_units_never_part_and_what_the_model_sees_is_counted(seed, shares):
    rng = np.random.default_rng(seed)
    unit = int(rng.integers(1, 5))
    prompts, answers = units_of(rng, int(rng.integers(1, 5)), unit)
    rows = [np.concatenate(row) for row in zip(prompts, answers)]

    def seen(part):
        if shares:
            return tree_tokens([rows[at] for at in part])
        return sum(map(len, {tuple(rows[at].tolist()) for at in part}))

    for limits in ({"most_tokens": int(rng.choice([40, 80, 160]))}, {"most_rows": 2 * unit}, {"at_least": 3}):
        found = cut(prompts, answers, unit=unit, shares=shares, **limits)
        assert sorted(itertools.chain(*found.rows)) == list(range(len(rows)))
        assert sum(map(seen, found.rows)) == found.seen
        for part in found.rows:
            starts = part[::unit]
            assert part == [start + row for start in starts for row in range(unit)]
            assert all(start % unit == 0 for start in starts)
            assert len(part) <= limits.get("most_rows", len(rows))
            assert seen(part) <= limits.get("most_tokens", found.tokens) or len(part) == unit
        assert len(found.rows) >= limits.get("at_least", 1)


def test_a_prompt_that_another_begins_with_is_not_torn_by_it():
    """In the order of tokens, the longer prompt's rows stand between those of the shorter."""
    short, longer = np.array([1, 2]), np.array([1, 2, 5])
    found = cut([short, longer, short], [np.array([3]), np.array([1]), np.array([9])], most_rows=2)
    assert sorted(map(sorted, found.rows)) == [[0, 2], [1]] and found.torn == 0
