"""The numbers and names that fill the braces of a wording."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from string import Formatter


def _choice(*options: str) -> Callable[[Random], str]:
    return lambda rng: options[int(rng.random() * len(options))]


def _whole(low: int, high: int) -> Callable[[Random], int]:
    return lambda rng: low + int(rng.random() * (high - low))


def _decimal(low: float, high: float, digits: int) -> Callable[[Random], float]:
    return lambda rng: round(low + rng.random() * (high - low), digits)


# "bad" values lie clearly outside and "ok" values clearly inside normal operation, whatever the service.
MAKERS: dict[str, Callable[[Random], object]] = {
    "slow_ms": _whole(2100, 9800),
    "slow_s": _decimal(2.1, 9.8, 1),
    "ok_ms": _whole(8, 290),
    "ok_ms2": _whole(8, 290),
    "bad_pct": _whole(86, 100),
    "half_pct": _whole(31, 78),
    "mid_pct": _whole(28, 62),
    "mid_pct2": _whole(28, 62),
    "low_pct": _whole(3, 19),
    "bad_ratio": _decimal(0.21, 0.74, 2),
    "ok_ratio": _decimal(0.001, 0.009, 3),
    "ok_ratio2": _decimal(0.001, 0.009, 3),
    "good_ratio": _decimal(0.90, 0.99, 2),
    "good_ratio2": _decimal(0.90, 0.99, 2),
    "few": _whole(2, 9),
    "few2": _whole(2, 9),
    "some": _whole(20, 400),
    "some2": _whole(20, 400),
    "many": _whole(10_000, 900_000),
    "many2": _whole(10_000, 900_000),
    "pool": _choice("20", "32", "50", "64", "100", "200"),
    "mib": _choice("512", "768", "1024", "2048", "4096"),
    "big_s": _whole(60, 900),
    "ok_s": _decimal(0.1, 1.4, 1),
    "days": _whole(20, 300),
    "pid": _whole(210, 32_000),
    "pid2": _whole(210, 32_000),
    "port": _choice("5432", "6379", "8080", "8443", "9092", "9000"),
    "node": lambda rng: f"node-{10 + int(rng.random() * 89)}",
    "ip": lambda rng: f"10.{int(rng.random() * 60)}.{int(rng.random() * 250)}.{2 + int(rng.random() * 250)}",
    "rid": lambda rng: f"{rng.getrandbits(24):06x}",
    "hash": lambda rng: f"{rng.getrandbits(28):07x}",
    "version": lambda rng: f"{1 + int(rng.random() * 5)}.{int(rng.random() * 30)}.{int(rng.random() * 9)}",
    "table": _choice("t_items", "t_users", "t_events", "t_price", "t_audit", "t_state"),
    "key": _choice("request.deadline", "max.batch", "upstream.url", "feature.mode", "retry.limit", "log.sampling"),
    "cls": _choice("KeyError", "NullPointerException", "IndexOutOfBounds", "TypeError", "IllegalStateException"),
    "file": _choice("handler.py:88", "quote.go:212", "mapper.kt:41", "render.ts:310", "merge.rs:127"),
    "volume": _choice("/var/lib/data", "/data", "/var/log", "/srv/wal", "/mnt/spool"),
    "partner": _choice("maps.example.net", "sms.example.com", "scoring.example.org", "tax.example.net"),
}


# What does not change from one line of a service to the next.
_FACTS = frozenset({"pool", "mib", "node", "version", "table", "key", "cls", "file", "volume", "partner", "days"})


@cache
def _pieces(wording: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in Formatter().parse(wording))


def fill(wording: str, rng: Random, facts: dict[str, object], **given: object) -> str:
    """`wording` with its braces filled from `given` or else by `MAKERS`; one that names a value twice gets it twice.

    `facts` keeps what holds for a whole service, such as the size of its pool, from line to line.
    """
    text = ""
    for literal, name in _pieces(wording):
        text += literal
        if name is None:
            continue
        if name not in given:
            if name not in _FACTS:
                given[name] = MAKERS[name](rng)
            else:
                if name not in facts:
                    facts[name] = MAKERS[name](rng)
                given[name] = facts[name]
        text += str(given[name])
    return text
