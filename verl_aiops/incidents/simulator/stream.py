"""What every seeded stream is told: languages, difficulty, systems and wordings, of incidents and of cases alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import ClassVar, TypeVar

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.schema import LANGUAGES
from verl_aiops.incidents.simulator.cast import pick
from verl_aiops.incidents.simulator.difficulty import DIFFICULTIES, Difficulty
from verl_aiops.incidents.simulator.topology import topologies
from verl_aiops.incidents.simulator.wordings import Wordings

__all__ = ["Stream"]

_Stream = TypeVar("_Stream", bound="Stream")


@dataclass(frozen=True)
class Stream:
    """Settings, checked.

    `lang` is en, zh or mix (then `zh_share` of them are Chinese); `difficulty` is a name of `difficulties`, mix (one of
    them each time) or a `Difficulty`; `wordings` says which wordings may be used.

    Raises:
        IncidentError: a setting out of its range.
    """

    difficulties: ClassVar[Mapping[str, Difficulty]] = DIFFICULTIES

    seed: int = 0
    lang: str = "en"
    zh_share: float = 0.5
    difficulty: str | Difficulty = "medium"
    topologies: tuple[str, ...] = field(default_factory=lambda: tuple(topologies()))
    wordings: Wordings = field(default_factory=Wordings)

    def __post_init__(self) -> None:
        if self.lang not in (*LANGUAGES, "mix"):
            raise IncidentError(f"lang '{self.lang}': expected one of {', '.join(LANGUAGES)}, mix")
        self._check_share("zh_share")
        if isinstance(self.difficulty, str) and self.difficulty not in (*self.difficulties, "mix"):
            raise IncidentError(f"difficulty '{self.difficulty}': expected one of {', '.join(self.difficulties)}, mix")
        known = ", ".join(topologies())
        for name in self.topologies:
            if name not in topologies():
                raise IncidentError(f"topology '{name}': expected one of {known}")
        if not self.topologies:
            raise IncidentError(f"topologies: expected at least one of {known}, found none")

    def _check_share(self, name: str) -> None:
        value = getattr(self, name)
        if value is not None and not 0 <= value <= 1:
            raise IncidentError(f"{name}: expected a share from 0 to 1, found {value}")

    def held_out(self: _Stream) -> _Stream:
        """The same in the wordings alone that this one holds out."""
        return replace(self, wordings=replace(self.wordings, held_out=True))

    def _drawn_lang(self, rng: Random) -> str:
        if self.lang == "mix":
            return "zh" if rng.random() < self.zh_share else "en"
        return self.lang

    def _drawn_difficulty(self, rng: Random) -> tuple[str, Difficulty]:
        if isinstance(self.difficulty, Difficulty):
            return "custom", self.difficulty
        name = pick(rng, tuple(self.difficulties)) if self.difficulty == "mix" else self.difficulty
        return name, self.difficulties[name]
