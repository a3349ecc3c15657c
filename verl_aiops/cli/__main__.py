"""`python -m verl_aiops.cli`: the command without its script."""

import sys

from verl_aiops.cli.main import main

sys.exit(main())
