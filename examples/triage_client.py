#!/usr/bin/env python3
"""`verl-aiops triage`, under the name that it had as a script."""

import sys

from verl_aiops.cli.command import run_alone
from verl_aiops.cli.triage import TRIAGE


def main(argv: list[str] | None = None) -> int:
    return run_alone("triage_client", TRIAGE, argv)


if __name__ == "__main__":
    sys.exit(main())
