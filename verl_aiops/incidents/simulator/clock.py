"""The times that are written into an incident."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

DAY = 86_400
_TWO_DIGITS = tuple(f"{number:02d}" for number in range(60))


@dataclass(frozen=True)
class Clock:
    """`alert`: seconds from the day's start to the alert, a whole minute. `dated`: whether times carry the date."""

    month: int
    day: int
    alert: int
    dated: bool

    @classmethod
    def drawn(cls, rng: Random, dated: bool) -> Clock:
        """Such that the hours before, and the day before, lie in the same month."""
        return cls(1 + int(rng.random() * 12), 3 + int(rng.random() * 26), 60 * (150 + int(rng.random() * 1200)), dated)

    def of(self, after: float) -> str:
        """`11-30 14:03:22`, or `14:03:22` where dates are left out, of so many seconds after the alert."""
        seconds = self.alert + int(after // 1)
        day = self.day + seconds // DAY
        seconds %= DAY
        time = f"{_TWO_DIGITS[seconds // 3600]}:{_TWO_DIGITS[seconds // 60 % 60]}:{_TWO_DIGITS[seconds % 60]}"
        return f"{_TWO_DIGITS[self.month]}-{_TWO_DIGITS[day]} {time}" if self.dated else time

    def minute(self, after: float) -> str:
        """The same without seconds."""
        return self.of(after)[:-3]
