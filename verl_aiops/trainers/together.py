"""What belongs to one prompt stays together where a batch is cut, as then the prompt is computed once.

Examples of preference learning and rows of GRPO alike: *items*, each with the key of its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from verl_aiops.seam.trainer import get_seqlen_balanced_partitions

__all__ = ["by_prompt", "in_blocks", "shared_out", "times_torn", "together", "torn"]

# prompts beyond those that would fill a block, among which `in_blocks` looks for such as fill it to the last place
_LOOK_AHEAD = 64


def by_prompt(prompts: Sequence[Hashable]) -> list[list[int]]:
    """Positions of each prompt's items; prompts in the order in which they come first."""
    groups: dict[Hashable, list[int]] = {}
    for at, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(at)
    return list(groups.values())


def torn(prompts: Sequence[Hashable], parts: Sequence[Sequence[int]]) -> int:
    """How often a prompt's items are in one part more: 0 where each prompt is in one."""
    of_parts = [{prompts[at] for at in part} for part in parts]
    return sum(map(len, of_parts)) - len(set().union(*of_parts))


def times_torn(prompts: Sequence[Hashable], parts: int) -> int:
    """`torn`, where items in this order are cut into equal parts."""
    size = len(prompts) // parts
    return torn(prompts, [range(at * size, (at + 1) * size) for at in range(parts)])


def together(
    prompts: Sequence[Hashable],
    prompt_tokens: Sequence[int],
    answer_tokens: Sequence[int],
    *,
    workers: int,
    mini_batches: int = 1,
) -> list[int]:
    """An order of rows that tears few prompts when it is cut into equal parts, as verl cuts it: one after another, a
    part for each worker, and each of these into mini-batches.

    Tokens are balanced as the model sees them, a part's prompts once. Where all prompts have equally many rows and a
    part is a multiple of that, none is torn; however they are, no more than
    ``workers * mini_batches - 1`` times (see `shared_out`).

    Args:
        prompts: what is equal for the rows of one prompt.
        prompt_tokens, answer_tokens: of each row.
        workers: data-parallel ranks.
        mini_batches: of each worker.

    Returns:
        positions of rows.

    Raises:
        ValueError: the rows cannot be cut into parts of one size.
    """
    if len(prompts) % (workers * mini_batches):
        raise ValueError(f"{len(prompts)} rows do not make {workers} x {mini_batches} parts of one size")

    def cost(rows: list[int]) -> int:
        return max(prompt_tokens[at] for at in rows) + sum(answer_tokens[at] for at in rows)

    order = []
    for share in shared_out(prompts, workers, cost):
        of_share = [prompts[at] for at in share]
        parts = shared_out(of_share, mini_batches, lambda rows, share=share: cost([share[row] for row in rows]))
        order += [share[part[at]] for part in parts for rows in by_prompt([of_share[at] for at in part]) for at in rows]
    return order


def in_blocks(prompts: Sequence[Hashable], room: int) -> list[int]:
    """An order in which blocks of ``room`` items tear few prompts: the given one, but for prompts that wait for a block
    that they fit into. Where none of the next prompts would fill a block to the last place, one is torn.

    Args:
        prompts: of each item. With none of them twice the order stays as it is.
        room: items in a block.

    Returns:
        positions, a prompt's side by side.
    """
    waiting = by_prompt(prompts)
    if len(waiting) == len(prompts):
        return list(range(len(prompts)))
    # taken from the end, where a list is cheap to shorten
    waiting.reverse()
    order: list[int] = []
    while waiting:
        left = room
        # more than a block holds begins one; its rest is the next to be looked at
        while len(waiting[-1]) > room:
            order += waiting[-1][:room]
            waiting[-1] = waiting[-1][room:]
        for at in _fill(waiting, left):
            group = waiting.pop(at)
            order += group
            left -= len(group)
        if left and waiting:
            order += waiting[-1][:left]
            waiting[-1] = waiting[-1][left:]
    return order


def _fill(waiting: list[list[int]], room: int) -> list[int]:
    """Places, descending, of those to be taken from the end of ``waiting``: such as make up ``room`` items, whoever
    comes first; where none do, as many as there is room for, one after another."""
    near, items = 0, 0
    while near < len(waiting) and items < room:
        near += 1
        items += len(waiting[-near])
    near = min(len(waiting), near + _LOOK_AHEAD)
    sizes = [len(waiting[-1 - number]) for number in range(near)]
    # bits: numbers of items that those from a place on can make up
    within = (1 << room + 1) - 1
    sums = [1]
    for size in reversed(sizes):
        sums.append(sums[-1] | sums[-1] << size & within)
    sums.reverse()
    exact, left, taken = sums[0] >> room & 1, room, []
    for number, size in enumerate(sizes):
        if size <= left and (not exact or sums[number + 1] >> left - size & 1):
            taken.append(len(waiting) - 1 - number)
            left -= size
    return taken


def shared_out(prompts: Sequence[Hashable], parts: int, cost: Callable[[list[int]], int]) -> list[list[int]]:
    """Items shared out in equal numbers: a prompt's to one part as far as the numbers allow, tokens balanced.

    What fits into no part whole is cut: each cut fills a part up, and the last part is filled by what is left, so there
    are fewer cuts than parts.

    Args:
        prompts: of each item.
        parts: their number divides that of the items.
        cost: tokens that the model sees of these items of one prompt, where they are computed together.

    Returns:
        for each part the positions of its items, ascending.
    """
    groups = by_prompt(prompts)
    if parts == 1:
        return [list(range(len(prompts)))]
    if len(set(map(len, groups))) == 1 and len(groups) % parts == 0:
        # all prompts alike, as in most data: verl's own way to balance
        shares = get_seqlen_balanced_partitions([cost(group) for group in groups], parts, equal_size=True)
        return [sorted(at for number in share for at in groups[number]) for share in shares]
    room = len(prompts) // parts
    # more than a part holds fills some, and only the rest is to be given a place
    groups = [group[at : at + room] for group in groups for at in range(0, len(group), room)]
    shares = _balanced(groups, parts, room, cost)
    if torn(prompts, shares) and (packed := _packed(groups, parts, room)):
        shares = packed
    return [sorted(share) for share in shares]


def _balanced(groups: list[list[int]], parts: int, room: int, cost: Callable[[list[int]], int]) -> list[list[int]]:
    """The largest prompts first, each where the fewest tokens are of the parts that have room for it; what fits nowhere
    is spread over the room that is left."""
    shares: list[list[int]] = [[] for _ in range(parts)]
    tokens = [0] * parts

    def give(part: int, items: list[int]) -> None:
        shares[part] += items
        tokens[part] += cost(items)

    rest = []
    for group in sorted(groups, key=lambda group: (-len(group), -cost(group), group)):
        open_parts = [part for part in range(parts) if len(shares[part]) + len(group) <= room]
        if open_parts:
            give(min(open_parts, key=lambda part: (tokens[part], part)), group)
        else:
            rest.append(group)
    for group in rest:
        while group:
            part = min(range(parts), key=lambda part: (len(shares[part]), tokens[part], part))
            left = room - len(shares[part])
            give(part, group[:left])
            group = group[left:]
    return shares


def _packed(groups: list[list[int]], parts: int, room: int) -> list[list[int]] | None:
    """Parts of whole prompts, filled one after another whatever their tokens; None where that does not come out."""
    left = sorted(range(len(groups)), key=lambda at: (-len(groups[at]), at))
    shares = []
    for _ in range(parts):
        # by the number of items: prompts that make it up
        sums: dict[int, list[int]] = {0: []}
        for at in left:
            for size, chosen in list(sums.items()):
                if size + len(groups[at]) <= room:
                    sums.setdefault(size + len(groups[at]), [*chosen, at])
        if room not in sums:
            return None
        left = [at for at in left if at not in sums[room]]
        shares.append([item for at in sums[room] for item in groups[at]])
    return shares
