"""What is said of an incident wherever it is asked or counted: which part of the data it is, and what can be known.

Results of different parts are not one result: a model may do well on simulated incidents alone, or on systems it was
trained on. And an answer that is given away, or that the text does not name, says little of reading.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["ANSWERABLE", "PARTS", "REAL", "SIMULATED", "UNSEEN", "answerable_by", "part_of"]

REAL, SIMULATED, UNSEEN = PARTS = ("real", "simulated", "unseen")
READ, GIVEN_AWAY, REMEMBERED = ANSWERABLE = ("read", "given_away", "remembered")
_SIMULATOR = "simulator/"


def part_of(source: str, unseen: bool = False) -> str:
    """`unseen` for a system that nothing is trained on, else `simulated` or `real`, which the source says."""
    return UNSEEN if unseen else SIMULATED if source.startswith(_SIMULATOR) else REAL


def answerable_by(services: Sequence[str], types: Sequence[str], listed: bool, named: Collection[str]) -> str:
    """How the answer can be found: `given_away` where the prompt lists one answer alone, `remembered` where the
    incident's text names none of the candidate services, else `read`.

    `services` and `types` are the candidates, `listed` whether the prompt shows them, `named` the services that the
    text names. A type says what happened in words of its own, so that the text need not name it.
    """
    if listed and len(services) == len(types) == 1:
        return GIVEN_AWAY
    return READ if any(name in named for name in services) else REMEMBERED
