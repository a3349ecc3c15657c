"""Which wordings a stream of incidents may use: all, those left for training, or those held out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

from verl_aiops.incidents.errors import IncidentError


@dataclass(frozen=True)
class Wordings:
    """`held_out_share` of each list of wordings is held out; a stream uses the others, or with `held_out` those alone.

    Which ones is settled by the texts themselves, whatever the seed, so that no stream of training incidents has ever
    used a held-out one. A list keeps at least one wording for training; a list of one has none to hold out.
    """

    held_out_share: float = 0.0
    held_out: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise IncidentError(
                f"share of wordings held out: expected a share from 0 to below 1, found {self.held_out_share}"
            )
        if self.held_out and not self.held_out_share:
            raise IncidentError("held-out wordings: a share of 0 holds none out; give the share of the training stream")

    def allowed(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Those of `texts` that the stream may use; empty where all of a list are left for training."""
        if not self.held_out_share:
            return texts
        return _part(texts, self.held_out_share, self.held_out)


@lru_cache(maxsize=4096)
def _part(texts: tuple[str, ...], share: float, held_out: bool) -> tuple[str, ...]:
    count = min(len(texts) - 1, max(1, round(share * len(texts)))) if texts else 0
    out = set(sorted(texts, key=lambda text: (zlib.crc32(text.encode()), text))[:count])
    return tuple(text for text in texts if (text in out) is held_out)
