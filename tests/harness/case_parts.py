"""A small case of every signal, written by hand: `orders` fails because its data base `db` has no connections left."""

from __future__ import annotations

import copy

ALERT = 1_764_511_380.0  # 2025-11-30 14:03:00 UTC


def record(**changes) -> dict:
    """The JSON form; `changes` replace top-level fields."""
    spans = []
    for number in range(8):
        bad, at = number >= 4, ALERT - 900 + 240 * number
        for span, parent, service, took in (("a", None, "edge", 120), ("b", "a", "orders", 90), ("c", "b", "db", 20)):
            status = "error" if bad and service != "edge" else "ok"
            took = took * 20 if bad else took
            spans.append(
                {
                    **{"time": at, "trace": f"t{number}", "span": span, "parent": parent, "service": service},
                    **{"operation": "POST /checkout", "duration_ms": took, "status": status},
                }
            )
    minutes = range(-15, 6)
    series = {
        ("db", "connections"): [95.0 if minute >= -2 else 20.0 + minute % 3 for minute in minutes],
        ("db", "cpu"): [30.0 + minute % 2 for minute in minutes],
        ("orders", "p99_ms"): [900.0 if minute >= -2 else 80.0 + minute % 5 for minute in minutes],
    }
    row = {
        "id": "shop-1",
        "source": "test/shop",
        "symptom": "Checkout fails",
        "lang": "en",
        "alert": ALERT,
        "group": "shop-f1",
        "signals": {
            "logs": [
                {"time": ALERT - 700, "service": "edge", "level": "INFO", "text": "GET /home 200"},
                {"time": ALERT - 60, "service": "orders", "level": "ERROR", "text": "db: timeout after 3000 ms"},
                {"time": ALERT - 100, "service": "db", "level": "FATAL", "text": "too many clients already"},
                {"time": ALERT - 50, "service": "orders", "level": "ERROR", "text": "db: timeout after 3000 ms"},
                {"time": ALERT + 5, "service": "edge", "level": "WARN", "text": "orders answers 500"},
            ],
            "metrics": [
                {
                    **{"service": service, "name": name, "unit": "1"},
                    "points": [[ALERT + 60 * minute, value] for minute, value in zip(minutes, values)],
                }
                for (service, name), values in series.items()
            ],
            "spans": spans,
            "events": [{"time": ALERT - 90, "service": "db", "kind": "Unhealthy", "text": "readiness probe failed"}],
            "changes": [
                {"time": ALERT - 4000, "service": "edge", "kind": "release", "text": "version 1.2.0"},
                {"time": ALERT - 150, "service": "orders", "kind": "config", "text": "pool.size 20 -> 200"},
            ],
        },
        "topology": [{"from": "edge", "to": "orders"}, {"from": "orders", "to": "db"}],
        "root_causes": [{"component": "db", "reason": "connections_exhausted", "time": ALERT - 120.0}],
        "propagation": [{"from": "db", "to": "orders"}, {"from": "orders", "to": "edge"}],
        "severity": "sev2",
        "team": "checkout",
        "reasons": ["connections_exhausted", "disk_full"],
    }
    row.update(copy.deepcopy(changes))
    return {name: value for name, value in row.items() if value is not None}
