"""Small made-up data sets in the authors' formats, and checks that hold for every imported file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from verl_aiops.incidents import Taxonomy, file_source, read_incidents


def write_csv(path: Path, header: list[str], rows: list[list]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


# loghub: a system of its own, with quiet lines (E1) and two families of alarming ones (E2, E3).
ROCKET_TEMPLATES = [["E1", "tick <*>"], ["E2", "valve <*> stuck"], ["E3", "fuel low at <*>"]]
ROCKET_MAPPING = """
window: {shortest: 3, longest: 5, per_type: 4, evidence: 2, line_chars: 60, min_records: 2}
systems:
  Rocket:
    place: a rocket
    level: Level
    component: Component
    services: {'pump\\.(\\w+)': rocket-\\1, tank: rocket-tank}
    types: {stuck_part: [E2], supply_low: [E3]}
"""


def rocket_line(number: int, event: str) -> tuple[str, list]:
    """The raw line and the structured row of line `number`, counted from 1."""
    level, component, content = {
        "E1": ("INFO", "clock", f"tick {number}"),
        "E2": ("ERROR", "pump.Main", f"valve {number} stuck"),
        "E3": ("WARN", "tank", f"fuel low at {number}"),
        "E4": ("WARN", "crew", f"fuel low at {number}"),
    }[event]
    event = event.replace("E4", "E3")
    template = dict(ROCKET_TEMPLATES)[event]
    return f"{number} {level} {component}: {content}", [number, level, component, content, event, template]


def make_loghub(root: Path, events: list[str]) -> Path:
    """The folder of the system Rocket with one line for each of `events`."""
    lines = [rocket_line(number, event) for number, event in enumerate(events, 1)]
    folder = root / "Rocket"
    header = ["LineId", "Level", "Component", "Content", "EventId", "EventTemplate"]
    write_csv(folder / "Rocket_2k.log_structured.csv", header, [row for _, row in lines])
    write_csv(folder / "Rocket_2k.log_templates.csv", ["EventId", "EventTemplate"], ROCKET_TEMPLATES)
    (folder / "Rocket_2k.log").write_bytes("".join(f"{line}\r\n" for line, _ in lines).encode())
    (root / "LICENSE").write_text("Terms of the rocket logs.\n")
    return root


def rocket_mapping(folder: Path, text: str = ROCKET_MAPPING) -> Path:
    path = folder / "rocket.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# Nezha: two minutes of a day of the built-in mapping, with one fault in code and one of the CPU.
SPANS = [
    "TraceID",
    "SpanID",
    "ParentID",
    "PodName",
    "OperationName",
    "StartTimeUnixNano",
    "EndTimeUnixNano",
    "Duration",
]
LOGS = ["Timestamp", "TimeUnixNano", "Node", "PodName", "Container", "TraceID", "SpanID", "Log"]
METRICS = ["CpuUsageRate(%)", "MemoryUsageRate(%)", "PodServerLatencyP90(s)", "PodClientLatencyP90(s)"]
REPLICAS = {
    "ts-gate": "ts-gate-5f55b6cf68-77cfw",
    "ts-cart": "ts-cart-84cbf6c798-7njv6",
    "ts-mail": "ts-mail-7f8d7d756d-k7b9j",
}
NEZHA_DAY = "2023-01-29"


def nezha_fault(time: str, service: str, kind: str) -> dict:
    return {"inject_time": f"{NEZHA_DAY} {time}", "inject_pod": REPLICAS[service], "inject_type": kind}


def make_nezha(root: Path, faults: list[dict], minutes=("10:01", "10:02"), logs: bool = True) -> Path:
    """Traces t-slow and t-fast call ts-gate and ts-cart, t-else only ts-gate; ts-cart logs an error in t-fast."""
    day = root / "rca_data" / NEZHA_DAY
    write_json(day / f"{NEZHA_DAY}-fault_list.json", {"10": faults})
    write_json(
        root / "construct_data" / "root_cause_ts.json",
        {"ts-cart": {"return": "cart opened_cart closed", "cpu_contention": "CpuUsageRate(%)"}},
    )
    write_json(root / "construct_data" / "root_cause_hipster.json", {})
    for minute in minutes:
        hour, _, number = minute.partition(":")
        start = int(number) * 60_000_000_000
        spans, lines = [], []
        for trace, slow in (("t-slow", 9), ("t-fast", 1), ("t-else", 1)):
            gate, cart = REPLICAS["ts-gate"], REPLICAS["ts-cart"]
            spans.append([trace, f"{trace}-a", "root", gate, "GET /cart", start, 0, 20_000 * slow])
            at = f"{NEZHA_DAY}T{minute}:01.000"
            lines.append([f"{at}9Z", 0, "n", gate, "server", trace, "s", wrapped(f"INFO gate {trace}")])
            if trace != "t-else":
                spans.append([trace, f"{trace}-b", f"{trace}-a", cart, "CartStore.open", start + 10, 0, 9_000])
                said = "ERROR cart broken" if trace == "t-fast" else "INFO cart opened"
                lines.append([f"{at}8Z", 0, "n", cart, "server", trace, "s", wrapped(f"{said} {trace}")])
                lines.append([f"{at}7Z", 0, "n", cart, "server", trace, "s", wrapped(f"INFO cart asked {trace}")])
        write_csv(day / "trace" / f"{hour}_{number}_trace.csv", SPANS, spans)
        if logs:
            write_csv(day / "log" / f"{hour}_{number}_log.csv", LOGS, lines)
    clock = [f"{NEZHA_DAY} 09:5{number}:09.1 +0000 UTC" for number in range(10)]
    clock += [f"{NEZHA_DAY} {minute}:09.1 +0000 UTC" for minute in minutes]
    for service, replica in REPLICAS.items():
        high = service == "ts-cart"
        usual = [[at, 0, replica, 2, 30, 0.01, "NaN"] for at in clock[:10]]
        now = [[at, 0, replica, 90 if high else 2, 30, 0.01, "NaN"] for at in clock[10:]]
        path = day / "metric" / f"{replica}_metric.csv"
        write_csv(path, ["Time", "TimeStamp", "PodName", *METRICS], usual + now)
    front = [[at, 0, "Frontend", 0.5, 0.25 if number < 10 else 1.5, 2.0] for number, at in enumerate(clock)]
    header = ["Time", "TimeStamp", "ServiceName", "LatencyP50(s)", "LatencyP90(s)", "LatencyP99(s)"]
    write_csv(day / "metric" / "front_service.csv", header, front)
    return root


def wrapped(text: str) -> str:
    """A log line as a container runtime wraps it."""
    return json.dumps({"log": f"{text}\n", "stream": "stdout", "time": "2023-01-29T10:01:01Z"})


# PetShop: one scenario, three services.
def petshop_metrics(path: Path, series: dict[tuple[str, str, str], list]) -> Path:
    """A table with one column for each (node, metric, statistic)."""
    keys = list(series)
    rows = [["metric", *(key[1] for key in keys)], ["statistic", *(key[2] for key in keys)]]
    rows += [["unix_timestamp", *("" for _ in keys)]]
    rows += [[number, *values] for number, values in enumerate(zip(*series.values()))]
    return write_csv(path, ["microservice", *(key[0] for key in keys)], rows)


def petshop_issue(folder: Path, root: str, metric: str, command: str, series) -> None:
    write_json(
        folder / "target.json",
        {
            "target": {"node": "Shop", "metric": metric, "agg": "Average", "timestamp": 1681399159},
            "root_cause": {"node": root, "metric": None},
            "metadata": {"reproducibility": {"command": command}},
        },
    )
    petshop_metrics(folder / "metrics.csv", series)


# OpenRCA: a bank with two failures.
RECORDS = [
    ["pod", "Fox01", "1614841020.0", "2021-03-04 14:57:00", "high CPU usage"],
    ["pod", "Fox02", "1614852540.0", "2021-03-04 18:09:00", "network latency"],
]
QUERIES = [
    ["task_3", "Which part failed between 14:30 and 15:00?", "The only predicted root cause component is Fox01\n"],
    ["task_1", "When did it happen?", "The only root cause occurrence time is within 1 minutes (i.e., <=1min) of x\n"],
]


def make_openrca(root: Path, records=RECORDS, queries=QUERIES, system: str = "Bank") -> Path:
    folder = root / system
    write_csv(folder / "record.csv", ["level", "component", "timestamp", "datetime", "reason"], records)
    write_csv(folder / "query.csv", ["task_index", "instruction", "scoring_points"], queries)
    return root


def check_incidents(path: Path) -> list:
    """The incidents of a written file, after checking what holds for every one of them."""
    incidents = list(read_incidents(path))  # Evidence is verbatim and ids are unique, or reading fails.
    for incident in incidents:
        assert incident.incident_type.replace("_", " ") not in incident.symptom.lower().replace("_", " "), incident.id
        if not incident.symptom.startswith("Frontend of"):
            assert incident.service.lower() not in incident.symptom.lower(), incident.id
    taxonomy = Taxonomy.from_incidents(incidents)
    source = file_source(path, taxonomy)
    assert source.count == len(incidents)
    return incidents
