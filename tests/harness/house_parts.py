"""A folder as one's own house may have it: every export in the form that the programs write, joined by cases.yaml."""

from __future__ import annotations

import json
from pathlib import Path

ALERT = 1_764_511_380  # 2025-11-30 14:03:00 UTC


def attributes(**given):
    return [{"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in given.items()]


def otlp_log(service, second, text, level="ERROR"):
    record = {
        "timeUnixNano": str((ALERT + second) * 10**9),
        "severityText": level,
        "severityNumber": 17,
        "body": {"stringValue": text},
    }
    resource = {"attributes": attributes(service__name=service)}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": {}, "logRecords": [record]}]}]}


def otlp_span(service, second, span, parent, took_ms, bad):
    start = (ALERT + second) * 10**9
    row = {
        "traceId": f"t{second}",
        "spanId": span,
        "parentSpanId": parent,
        "name": "POST /checkout",
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + took_ms * 10**6),
        "status": {"code": 2} if bad else {},
    }
    resource = {"attributes": attributes(service__name=service)}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [row]}]}]}


def webhook():
    alert = {
        "status": "firing",
        "labels": {"alertname": "CheckoutErrors", "severity": "page", "team": "shop"},
        "annotations": {"summary": "Checkout fails"},
        "startsAt": "2025-11-30T14:03:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "abc123",
    }
    return {"version": "4", "groupKey": "{}", "commonLabels": {}, "commonAnnotations": {}, "alerts": [alert]}


def pagerduty():
    return {
        "id": "PD1",
        "incident_number": 42,
        "title": "Orders are slow",
        "created_at": "2025-11-30T16:00:00Z",
        "urgency": "high",
        "teams": [{"summary": "orders"}],
    }


MAPPING = """
source: acme/shop
alerts: [alertmanager.json, pagerduty.jsonl]
logs: logs.jsonl
spans: traces.json
metrics: "prom/*.json"
events: events.json
changes: deploys.csv
services: {"shop-db.*": db}
columns: {time: deployed_at, service: app, kind: type, text: what}
reasons: [connections_exhausted, disk_full]
truth:
  abc123:
    root_causes: [{component: db, reason: connections_exhausted}]
    propagation: [{from: db, to: orders}]
"""


def make_house(root: Path) -> Path:
    """The folder `root`, made; its mapping file is cases.yaml."""
    (root / "prom").mkdir(parents=True)

    def write(name, value):
        (root / name).write_text(value if isinstance(value, str) else json.dumps(value, indent=1), encoding="utf-8")

    def lines(name, rows):
        write(name, "".join(json.dumps(row) + "\n" for row in rows))

    write("cases.yaml", MAPPING)
    write("alertmanager.json", webhook())
    lines("pagerduty.jsonl", [pagerduty()])
    nameless = otlp_log("x", 0, "y")
    nameless["resourceLogs"][0]["resource"] = {}
    lines(
        "logs.jsonl",
        [
            otlp_log("shop-db-0", -60, "too many clients already", "FATAL"),
            otlp_log("orders", -50, "db: timeout"),
            otlp_log("orders", -9000, "long before", "INFO"),
            nameless,
        ],
    )
    spans = [
        otlp_span("orders", -40, "a", "", 900, True),
        otlp_span("shop-db", -40, "b", "a", 800, True),
        otlp_span("orders", -900, "a", "", 90, False),
    ]
    write("traces.json", {"resourceSpans": [row for span in spans for row in span["resourceSpans"]]})
    values = [[ALERT + 60 * minute, "95" if minute >= -2 else "20"] for minute in range(-30, 10)]
    metric = {"__name__": "pg_connections", "pod": "shop-db-0", "state": "active", "instance": "10.0.0.1:9187"}
    rows = [
        {"metric": metric, "values": [*values, [ALERT, "NaN"]]},
        {"metric": {"__name__": "node_load1", "instance": "10.0.0.1:9100"}, "values": values},
    ]
    write("prom/db.json", {"status": "success", "data": {"resultType": "matrix", "result": rows}})
    event = {
        "type": "Warning",
        "reason": "Unhealthy",
        "message": "Readiness probe failed",
        "involvedObject": {"kind": "Pod", "name": "orders-7f9c6d5b8-x2x4z"},
        "lastTimestamp": "2025-11-30T14:02:00Z",
        "count": 4,
    }
    write("events.json", {"apiVersion": "v1", "kind": "List", "items": [event]})
    write(
        "deploys.csv",
        "deployed_at,app,type,what\n2025-11-30T13:59:00Z,orders,release,version 1.2.3\n,orders,release,no time\n",
    )
    return root
