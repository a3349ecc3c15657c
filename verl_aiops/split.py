"""Which side of a train/validation split a group of rows is on."""

from __future__ import annotations

from hashlib import blake2b


def split_side(group: str, val_share: float, seed: int = 0) -> str:
    """`"val"` for about `val_share` of all groups, else `"train"`; depends on the three arguments alone.

    So every file built from the same incidents with the same seed and share (pairs, SFT, RL) has the same split, and
    a stream needs no memory of what came before.
    """
    digest = blake2b(f"{seed}\0{group}".encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < val_share * 2**64 else "train"
