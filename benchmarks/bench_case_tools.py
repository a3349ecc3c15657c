"""How many calls of investigation tools one core answers in a second, and how fast cases are simulated and read.

    python benchmarks/bench_case_tools.py
    python benchmarks/bench_case_tools.py --cases cases.jsonl --calls 50000

The time includes making each case ready, once for its 40 calls: as many as a step of GRPO makes with 8 answers of 5.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from verl_aiops.investigation import TOOLS, Case, answer, read_cases, write_cases
from verl_aiops.investigation.simulator import CaseSimulator

CALLS_A_CASE = 40


def drawn(rng: random.Random, case: Case) -> tuple[str, dict]:
    """A call as a model makes it: a tool, a service of the case, sometimes a window, words or another page."""
    name = rng.choice(tuple(TOOLS))
    options = {
        "service": rng.choice(case.services),
        "level": "WARN",
        "contains": rng.choice(("timeout", "rid", "error|fail")),
        "metric": "p99",
        "status": "error",
        "start": str((case.alert or 0) - 300),
        "limit": rng.choice((5, 20)),
    }
    chances = {"service": 0.8}
    given = {
        key: options[key] for key in TOOLS[name].parameters if key in options and rng.random() < chances.get(key, 0.4)
    }
    return name, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", metavar="FILE.jsonl", help="default: 200 simulated ones, medium")
    parser.add_argument("--calls", type=int, default=20_000, help="default %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = args.cases
        if file is None:
            file = Path(folder) / "cases.jsonl"
            began = time.perf_counter()
            count = write_cases(CaseSimulator().stream(200), file)
            took = time.perf_counter() - began
            print(
                f"simulated and written: {count / took:,.0f} cases/s, {file.stat().st_size / count / 1e3:,.0f} kB each"
            )
        began = time.perf_counter()
        cases = list(read_cases(file))
        print(f"read and checked: {len(cases) / (time.perf_counter() - began):,.0f} cases/s")
    rng = random.Random(0)
    calls = [(case, *drawn(rng, case)) for case in cases for _ in range(CALLS_A_CASE)][: args.calls]
    took: defaultdict[str, float] = defaultdict(float)
    count: Counter[str] = Counter()
    chars = failed = 0
    for case, name, given in calls:
        began = time.perf_counter()
        said = answer(case, name, given)
        took[name] += time.perf_counter() - began
        count[name] += 1
        chars += len(said.text)
        failed += not said.ok
    total = sum(took.values())
    print(f"{len(calls):,} calls over {len(cases):,} cases: {len(calls) / total:,.0f} calls/s, one core")
    print(f"answers of {chars / len(calls):,.0f} characters on average; {failed:,} calls could not be answered")
    for name in TOOLS:
        if count[name]:
            print(f"  {name}: {1e6 * took[name] / count[name]:,.0f} µs a call")


if __name__ == "__main__":
    main()
