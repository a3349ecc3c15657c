"""What baselines without a language model say of the cases of an RL file, as the lines of an evaluation.

python benchmarks/tools_baselines.py --data side.parquet --out generations.jsonl --method rule
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="RL rows of investigations")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="generations.jsonl")
    parser.add_argument("--method", choices=("rule",), default="rule")
    arguments = parser.parse_args()

    from verl_aiops.evaluation.investigation.evaluate import rule_lines
    from verl_aiops.evaluation.investigation.questions import read_case_questions

    lines = rule_lines(read_case_questions(arguments.data), {})
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
