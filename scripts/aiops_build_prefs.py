#!/usr/bin/env python3
"""From nothing to preference pairs: `python scripts/aiops_build_prefs.py --out prefs.parquet`.

The same as `verl-aiops build-prefs`; also runs in a clone that is not installed (pyarrow and tqdm are enough).
"""

import sys
from pathlib import Path

try:
    from verl_aiops.cli.main import main
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from verl_aiops.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["build-prefs", *sys.argv[1:]]))
