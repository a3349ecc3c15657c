"""Made-up incidents with what collections of real ones have and the simulator's have not.

Windows of logs in six layouts (blanks at both ends, brackets, quotation marks, lines cut at 270 characters), long
traces, tables of metrics; several records of one fault, records without evidence, one log line in the evidence of two
windows, systems with one service or with one answer, names within names, two sources under one name in the taxonomy.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

LAYOUTS = (
    "{n} 2031.06.14 R{a:02d}-M0-N{b}-C:J10-U01 RAS {name} {level} {text}",
    "Jul  6 01:{a:02d}:{b:02d} desk-10-105-{b} {name}[{n}]: {text}",
    "2031-09-29 02:{a:02d}:{b:02d}, {level:<21} CBS    {name} {text} [HRESULT = 0x800f{n:04x} - E_{b}]",
    "[07.27 05:{a:02d}:{b:02d}] {name} *64 - host{n}.example.net:443 {level} : {text}",
    "  {n} - {level} <{name}$Worker@{b}> : {text}  ",
    "{name}.log.1 2031-05-16 00:{a:02d}:{b:02d}.{n} {level} [req-{n:08x} - - -] 10.11.{b}.1 {text}",
)
QUIET = (
    "network changed: v4(en0+:10.105.{a}.{b}) v6(en0:2607:f140::{n:x}) DNS! Proxy",
    'answered 10.11.{b}.1 "GET /v2/{n:040x} HTTP/1.1" status: 200 len: {n}',
    "unnest of range 0x7fff{n:x}->0x7fff{n:x}: " + "while not abnormal, this grows the footprint; " * 6,
    "served block blk_-{n}{n} to /10.251.{a}.{b}",
)
ALARMS = {
    "memory_fault": "data storage interrupt at 0x{n:08x}, {b} corrections",
    "connection_lost": "link to 10.250.{a}.{b}:{n} severed, blk_-{n}{n}",
    "auth_failure": "Failed password for root from 183.62.{a}.{b} port {n} ssh2  user=root",
    "state_drift": "unknown base file: /var/lib/instances/_base/{n:040x}",
    "lookup_failure": "no address for cse{b}.example.org：{n} ms, " + "next resolver in the list asked; " * 8,
    "volume_offline": 'IOErrorDomain Code=-{n} "The volume {a} appears to be offline." UserInfo={{Underlying=0x{n:x} "',
}
LOG_SYSTEMS = {
    "torus": (("torus-kernel", "torus-kernel-mmcs", "torus-app"), ("memory_fault", "connection_lost", "state_drift")),
    "desk": (("desk-com.maker.geod", "desk-mail", "qq"), ("volume_offline", "auth_failure")),
    "servicing": (("cbs",), ("state_drift",)),
    "proxy": (("proxifier",), ("connection_lost", "lookup_failure", "auth_failure", "volume_offline")),
    "quorum": (("quorum-peer", "quorum-server"), ("connection_lost", "auth_failure", "memory_fault")),
    "nova": (("nova-api", "nova-compute", "nova-scheduler"), ("state_drift", "volume_offline")),
    "login": (("sshd",), ("auth_failure", "connection_lost")),
    "blocks": (("datanode",), ("connection_lost",)),
}
TRAIN = tuple(f"ts-{name}-service" for name in ("basic", "order", "order-other", "travel", "travel2", "preserve"))
SHOP = ("PetSearch", "petInfo", "payforadoption", "petlistadoptions")
PER_TYPE, PER_ANSWER, FAULTS, METRIC_ROWS = 18, 20, 60, 40


@dataclass(frozen=True)
class Collection:
    """Where the incidents and their taxonomy are, and what its maker knows of them."""

    path: Path
    taxonomy: Path
    count: int
    faults: int
    groups: int  # faults, those that share an evidence line counted once
    without_evidence: int
    one_answer: frozenset[str]  # sources with a single service and a single type
    one_service: frozenset[str]


def write_collection(folder: Path) -> Collection:
    """Write incidents.jsonl and taxonomy.json into `folder`; the same bytes every time."""
    rng = Random("collected")
    windows, repeats = _windows(rng)
    traces, tables = list(_traces(rng)), list(_tables(rng))
    rows = windows + traces + tables
    path, taxonomy = folder / "incidents.jsonl", folder / "taxonomy.json"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    systems: dict[str, dict[str, set]] = {}
    for row in rows:
        lists = systems.setdefault(row["source"].removesuffix("/high").removesuffix("/low"), {})
        lists.setdefault("services", set()).add(row["service"])
        lists.setdefault("incident_types", set()).add(row["incident_type"])
    lists = {name: {key: sorted(names) for key, names in both.items()} for name, both in systems.items()}
    taxonomy.write_text(json.dumps(lists), encoding="utf-8")
    faults = len(windows) + FAULTS + len(tables)
    single = {name for name, both in lists.items() if len(both["services"]) == 1}
    alone = {name for name in single if len(lists[name]["incident_types"]) == 1}
    without = sum(not row["evidence"] for row in rows)
    return Collection(
        *(path, taxonomy, len(rows), faults, faults - repeats, without), frozenset(alone), frozenset(single)
    )


def _windows(rng: Random) -> tuple[list[dict], int]:
    """Windows of the log systems, and how many of them have an evidence line of the one before."""
    rows, repeats, number = [], 0, 1000
    for place, (system, (services, types)) in enumerate(LOG_SYSTEMS.items()):
        layout, made = LAYOUTS[place % len(LAYOUTS)], 0
        for kind in types:
            before = None
            for at in range(PER_TYPE if len(types) > 1 else PER_ANSWER):
                service, made = services[(at + len(kind)) % len(services)], made + 1

                def line(level, text, name, layout=layout):
                    nonlocal number
                    number += 1
                    values = {"n": number, "a": number // 60 % 60, "b": number % 60}
                    return layout.format(**values, level=level, name=name, text=text.format(**values))[:270]

                evidence = [line(rng.choice(["FATAL", "WARN"]), ALARMS[kind], service) for _ in range(at % 5 + 1)]
                logs = [line("INFO", rng.choice(QUIET), rng.choice(services)) for _ in range(14 - len(evidence))]
                logs += evidence
                rng.shuffle(logs)
                if before and at % 7 == 6:
                    logs.append(before)
                    evidence.append(before)
                    repeats += 1
                before = evidence[0]
                symptom = f"Log alert on {system}: {len(evidence)} of {len(logs)} messages are above INFO level."
                rows.append(_row(f"logs-{system}-{made:04d}", f"logs/{system}", service, kind, symptom, logs, evidence))
    return rows, repeats


def _traces(rng: Random):
    """One to four records of each fault; the evidence is log lines, a metric line, spans, or nothing."""
    for fault in range(FAULTS):
        service = TRAIN[fault % len(TRAIN)]
        kind = ("cpu_saturation", "network_delay", "unhandled_exception", "wrong_return")[fault // 2 % 4]
        for record in range(1, fault % 4 + 2):
            stamp = f"2031-01-29T08:{fault:02d}:{10 * record:02d}"
            spans = [
                f"span {rng.choice(TRAIN)} Controller{at}.get{{id}} {rng.random() * 90:.1f}ms (usual {at}.1ms)"
                for at in range(rng.randrange(8, 30))
            ]
            trace_id = f"{rng.getrandbits(128):032x}"
            logs = [
                f"{stamp}.{at:03d} {rng.choice(TRAIN)} INFO c.s.ServiceImpl#{at} TraceID: {trace_id} [find][id: {at}]"
                for at in range(rng.randrange(3, 12))
            ]
            if kind == "cpu_saturation":
                own = [f"metric {service} CpuUsageRate(%)={80 + rng.random():.3f} (usual 3.1) MemoryUsageRate(%)=0"]
            elif kind == "network_delay":
                own = [f"span {service} HTTP GET /v1/{fault} {at}{record}03.5ms (usual 7.0ms)" for at in range(1, 4)]
            else:
                own = [f"{stamp}.{at}33 {service} ERROR c.Repo#{at} TraceID: {trace_id} [No rows]" for at in (1, 2)]
            if kind == "network_delay":
                spans[3:3] = own
            else:
                logs += own
            silent = (fault + record) % 9 == 0
            symptom = f"Frontend of the trains: request latency P90 {fault}.4s (usual 0.5s) at 08:{fault:02d} UTC."
            yield _row(
                *(f"trains-f{fault:03d}-{record}", "trains", service, kind, symptom, logs),
                *([] if silent else own, "\n".join(spans)),
            )


def _tables(rng: Random):
    for at in range(METRIC_ROWS):
        service, number = SHOP[at % len(SHOP)], at + 1
        kind = ("request_errors", "slow_code_path", "request_overload")[at // 4 % 3]
        names = [f"{other}_AWS::Lambda" for other in SHOP] + [f"lambda_step{step}_AWS::Lambda" for step in range(6)]
        logs = [f"metric {name} latency p99={rng.random():.4g} (usual {rng.random():.4g})" for name in names]
        own = [f"metric {service}_AWS::Lambda::Function errors Sum={number}{rng.randrange(10, 99)} (usual 0)"]
        symptom = f"Front page latency (Average) alarm at 15:{at:02d} UTC: 0.1331 against a usual 0.09784."
        source = f"shop/{'high' if at % 2 else 'low'}"
        yield _row(f"shop-{number:03d}", source, service, kind, symptom, logs + own, own if at else [])


def _row(name, source, service, kind, symptom, logs, evidence, trace=None) -> dict:
    return {
        **{"id": name, "source": source, "service": service, "incident_type": kind, "symptom": symptom},
        **{"logs": logs, "trace": trace, "lang": "en", "evidence": evidence},
    }
