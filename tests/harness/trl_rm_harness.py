"""`verl-aiops train-rm --backend trl` with the options that every test of it gives."""

from verl_aiops.cli.main import main

__all__ = ["train_by_trl"]


def train_by_trl(data, model, out, *more):
    """Its exit code."""
    named = ["--data", str(data), "--model", str(model), "--out", str(out)]
    return main(["train-rm", "--backend", "trl", *named, "--device", "cpu", *more])
