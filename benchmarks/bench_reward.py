"""How many answers the triage reward scores in a second on one core: `python benchmarks/bench_reward.py`.

The answers are ordinary two-round ones to made-up incidents of about 2,000 characters: right, half right, wrong and
malformed ones in turn, with three quotations each. No text was seen before in the run, except for the incident and its
ground truth, which eight answers share as in a GRPO group of eight.
"""

import argparse
import gc
import json
import os
import platform
import random
import time

from verl_aiops.rewards.aiops_mturn import compute_score

GROUP = 8
SERVICES = [
    f"{name}service" for name in ("ad", "cart", "checkout", "currency", "email", "payment", "shipping", "quote")
]
TYPES = ["cpu_saturation", "network_delay", "memory_leak", "auth_failure", "disk_full", "wrong_return"]


def build_calls(groups: int, *, text_truth: bool, chinese: bool, seed: int = 0) -> list[tuple]:
    """Arguments of `groups` times `GROUP` calls."""
    draw = random.Random(seed)
    thought = (
        "我先看延迟，再看资源指标，正常的部分先排除。" * 4
        if chinese
        else "Latency first, then resources; what is normal goes. " * 6
    )
    calls = []
    for group in range(groups):
        service, kind = draw.choice(SERVICES), draw.choice(TYPES)
        lines = [
            f"2024-05-02T10:{n:02d}:07 {draw.choice(SERVICES)} span {draw.getrandbits(48):012x} took {n} ms"
            for n in range(27)
        ]
        evidence = [f"{service} metric {draw.getrandbits(32):08x} at 9{n}.4, usual 12.1" for n in range(3)]
        for line in evidence:
            lines.insert(draw.randint(0, len(lines)), line)
        truth = {
            "service": service,
            "incident_type": kind,
            "evidence": evidence,
            "candidates": {"service": SERVICES, "incident_type": TYPES},
            "aliases": {"service": {service: [f"{service}-prod"]}},
        }
        for member in range(GROUP):
            quoted = draw.sample(evidence, 2) + draw.sample(lines, 1)
            early = f"{thought} ({group}.{member})\n" + "\n".join(f'- "{line}"' for line in quoted)
            answer = json.dumps(
                {
                    "service": service if member % 4 else draw.choice(SERVICES),
                    "incident_type": kind if member % 3 else draw.choice(TYPES),
                }
            )
            answer = answer if member % 8 != 7 else f"The answer: {answer}"
            extra = {"turns": [early, answer], "incident_text": "\n".join(lines), "num_turns": 4}
            calls.append(("aiops_mturn", early + answer, json.dumps(truth) if text_truth else truth, extra))
    return calls


def measure(calls: list[tuple], *, chunk: int = 800) -> list[float]:
    """Scores per second of CPU time for each chunk of the calls, slowest first.

    Chunks, since a machine that others use slows down for moments; CPU time, since waiting for a core is not scoring.
    """
    gc.collect()
    gc.freeze()  # the waiting calls are input; collecting garbage among them would be timed as scoring
    rates = []
    for at in range(0, len(calls), chunk):
        part = calls[at : at + chunk]
        start = time.process_time()
        for call in part:
            compute_score(*call)
        rates.append(len(part) / (time.process_time() - start))
    gc.unfreeze()
    return sorted(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=2000, help="groups of eight answers per kind of call")
    options = parser.parse_args()
    print(f"python {platform.python_version()}, {_processor()}, {os.cpu_count()} cores, one used")
    for chinese in (False, True):
        for text_truth in (True, False):
            rates = measure(build_calls(options.groups, text_truth=text_truth, chinese=chinese))
            name = f"{'zh' if chinese else 'en'}, ground truth as {'JSON text' if text_truth else 'mapping'}"
            print(f"{name:32} {rates[len(rates) // 2]:9,.0f} scores/s (median), {rates[-1]:9,.0f} best")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


if __name__ == "__main__":
    main()
