"""Rows of one prompt on one worker, side by side: a prompt that rows share goes through the model once only there."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

__all__ = ["times_torn", "together"]

_Piece = list[int]  # rows of one prompt


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
    ``workers * mini_batches - 1`` times (see `_shared_out`).

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
    pieces: dict[Hashable, _Piece] = {}
    for at, prompt in enumerate(prompts):
        pieces.setdefault(prompt, []).append(at)

    def cost(piece: _Piece) -> int:
        return max(prompt_tokens[at] for at in piece) + sum(answer_tokens[at] for at in piece)

    return [
        at
        for share in _shared_out(list(pieces.values()), workers, cost)
        for part in _shared_out(share, mini_batches, cost)
        for piece in part
        for at in piece
    ]


def times_torn(prompts: Sequence[Hashable], parts: int) -> int:
    """How many times more than once prompts go through the model when rows in this order are cut into equal parts."""
    size = len(prompts) // parts
    return sum(len(set(prompts[at * size : (at + 1) * size])) for at in range(parts)) - len(set(prompts))


def _shared_out(pieces: list[_Piece], parts: int, cost) -> list[list[_Piece]]:
    """Parts of equally many rows.

    What fits into no part whole is cut: each cut fills a part up, and the last part is filled by what is left, so there
    are fewer cuts than parts.
    """
    if parts == 1:
        return [pieces]
    if len({len(piece) for piece in pieces}) == 1 and len(pieces) % parts == 0:
        found = get_seqlen_balanced_partitions([cost(piece) for piece in pieces], k_partitions=parts, equal_size=True)
        return [[pieces[at] for at in part] for part in found]
    shares: list[list[_Piece]] = [[] for _ in range(parts)]
    room = [sum(map(len, pieces)) // parts] * parts
    load = [0] * parts

    def give(piece: _Piece, part: int) -> None:
        shares[part].append(piece)
        room[part] -= len(piece)
        load[part] += cost(piece)

    def lightest(size: int) -> int | None:
        """The part with the fewest tokens of those that have room."""
        return min((part for part in range(parts) if room[part] >= size), key=load.__getitem__, default=None)

    left = []
    for piece in sorted(pieces, key=lambda piece: (-len(piece), -cost(piece))):
        part = lightest(len(piece))
        if part is None:
            left.append(piece)
        else:
            give(piece, part)
    for piece in left:
        while (part := lightest(len(piece))) is None:
            part = max(range(parts), key=room.__getitem__)
            piece, rest = piece[: room[part]], piece[room[part] :]
            give(piece, part)
            piece = rest
        give(piece, part)
    return shares
