"""Which side of a train/validation/test split a group of rows is on."""

from __future__ import annotations

from hashlib import blake2b


def split_side(group: str, val_share: float, seed: int = 0, test_share: float = 0.0) -> str:
    """`"val"` for about `val_share` of all groups, `"test"` for about `test_share`, else `"train"`; depends on the
    arguments alone.

    So every file built from the same incidents with the same seed and shares (pairs, SFT, RL) has the same split, and
    a stream needs no memory of what came before. A test side is taken from training: validation stays as it is.
    """
    digest = blake2b(f"{seed}\0{group}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big")
    if place < val_share * 2**64:
        return "val"
    return "test" if place < (val_share + test_share) * 2**64 else "train"
