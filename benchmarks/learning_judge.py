"""The judge of `learning_rm.py`: a small language model of our own, taught to mark answers, behind a chat server.

Its lessons are the pairs of the reward models: a right answer gets the mark 10, one with one wrong field 5, with both
wrong 0, in the prompt and the strict form of `verl_aiops.rewards.model.judge`. The process of `measure` asks it about
held-out pairs as the training does. On a machine without a GPU, where no such server is, `stub` answers instead: it
knows nothing and is there to try the commands.

    python benchmarks/learning_judge.py stub --port 8100
    python benchmarks/learning_judge.py measure --url http://127.0.0.1:8100/v1/chat/completions --pairs P --out O.json
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["REWARD", "write_lessons"]

MARKS = {"wrong_service": 5, "wrong_type": 5, "upstream": 5}
# the judge's mark as the reward, and the rule's score beside it for the plot
REWARD = '''"""The judge's mark is the reward; the rule's score is logged beside it."""

from verl_aiops.rewards import aiops_mturn
from verl_aiops.rewards.model import judge_reward


async def compute_score(data_source, solution_str, ground_truth, extra_info=None, **judge):
    rule = aiops_mturn.compute_score(data_source, solution_str, ground_truth, extra_info)
    judged = await judge_reward.compute_score(data_source, solution_str, ground_truth, extra_info, **judge)
    return {**rule, "rule": rule["score"], **judged}
'''


def rows_of(pairs: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(pairs).to_pylist()


def _last(messages: list[dict[str, Any]]) -> str:
    return messages[-1]["content"]


def write_lessons(pairs: Path, out: Path, seed: int = 0) -> None:
    """A preference file whose chosen answers are the verdicts that a judge should give, for SFT."""
    from verl_aiops.rewards.model.judge_prompts import POINTWISE, prompt_of

    rng = random.Random(seed)
    with out.open("w", encoding="utf-8") as file:
        for row in rows_of(pairs):
            for side, mark in (("chosen", 10), ("rejected", MARKS.get(row["kind"], 0))):
                part = f"{rng.getrandbits(64):016x}"
                text, word = prompt_of(POINTWISE, part, request=row["incident_text"], answer=_last(row[side]))
                lesson = {"prompt": [{"role": "user", "content": text}], "group": row["group"]}
                lesson |= {"chosen": [{"role": "assistant", "content": f"{word}: {mark}"}]}
                lesson |= {"rejected": [{"role": "assistant", "content": f"{word}: {0 if mark else 10}"}]}
                file.write(json.dumps(lesson, ensure_ascii=False) + "\n")


async def _marks(url: str, model: str, rows: list[dict[str, Any]]) -> tuple[list[tuple[Any, Any]], dict[str, float]]:
    from verl_aiops.rewards.model.judge import Judge
    from verl_aiops.rewards.model.judge_prompts import JudgeError

    judge = Judge(url, model, max_tokens=40, attempts=3, concurrency=64)

    async def one(row: dict[str, Any], side: str) -> float | None:
        try:
            return await judge.rate(row["incident_text"], _last(row[side]))
        except JudgeError as error:
            print(error, file=sys.stderr)
            return None

    asked = [asyncio.gather(one(row, "chosen"), one(row, "rejected")) for row in rows]
    found = [tuple(pair) for pair in await asyncio.gather(*asked)]
    metrics = judge.metrics()
    await judge.close()
    return found, metrics


def measure(url: str, model: str, pairs: Path, limit: int) -> dict[str, Any]:
    """How often a right answer has the higher mark, of held-out pairs; intervals over faults, ties half right."""
    import numpy as np

    from verl_aiops.evaluation.stats.paired_tests import mean_intervals
    from verl_aiops.evaluation.stats.shares import Of

    rows = rows_of(pairs)
    rows = random.Random("judge").sample(rows, min(limit, len(rows)))
    started = time.monotonic()
    found, metrics = asyncio.run(_marks(url, model, rows))
    seconds = time.monotonic() - started
    right = np.array(
        [np.nan if None in pair else 1.0 if pair[0] > pair[1] else 0.5 * (pair[0] == pair[1]) for pair in found]
    )
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(row["group"], len(numbers)) for row in rows])
    mean = mean_intervals(right[:, None], groups, 0, [Of(single=True)])[0]
    return {
        "accuracy": {"value": mean.value, "low": mean.low, "high": mean.high, "n": mean.n, "groups": mean.groups},
        "ties": float(np.nanmean(right == 0.5)),
        "without_verdict": float(np.isnan(right).mean()),
        "seconds": seconds,
        "metrics": metrics,
    }


class _Stub(BaseHTTPRequestHandler):
    """A mark by the request's digest, in the form that the prompt asks for."""

    def do_GET(self) -> None:
        self._say({"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        word = re.findall(r"^(VERDICT-[0-9a-f]+):", text, re.M)[-1]
        judged = text.replace(word.removeprefix("VERDICT-"), "")
        mark = hashlib.sha256(judged.encode("utf-8", "surrogatepass")).digest()[0] % 11
        self._say({"choices": [{"message": {"role": "assistant", "content": f"{word}: {mark}"}}]})

    def _say(self, what: dict[str, Any]) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    stub = commands.add_parser("stub")
    stub.add_argument("--port", type=int, required=True)
    asked = commands.add_parser("measure")
    asked.add_argument("--url", required=True)
    asked.add_argument("--model", default="judge")
    asked.add_argument("--pairs", type=Path, required=True)
    asked.add_argument("--limit", type=int, default=400)
    asked.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "stub":
        ThreadingHTTPServer(("127.0.0.1", arguments.port), _Stub).serve_forever()
        return 0
    found = measure(arguments.url, arguments.model, arguments.pairs, arguments.limit)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
