"""The settings of `verl-aiops eval-pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.settings import Settings, setting

__all__ = ["PairsAsked"]

_data, _work = (partial(setting, group=group) for group in ("data", "computing"))


@dataclass(frozen=True)
class PairsAsked(Settings):
    """Which pairs are read, how, and where they are scored."""

    columns: str | None = _data(
        None, "columns of other names: prompt=question,chosen=better (default: none)", metavar="N=C,N=C"
    )
    text_pairs: str | None = _data(
        None, "pairs of texts in the chat template, or as they are (default: as they are)", choices=("chat", "plain")
    )
    max_prompt_length: int | None = _data(None, "tokens of a prompt (default: no limit)", within="(0, inf)")
    max_response_length: int | None = _data(None, "tokens of an answer (default: no limit)", within="(0, inf)")
    truncation: str = _data(
        "error",
        "what becomes of longer pairs: refused, prompts cut, left out and counted",
        choices=("error", "left", "drop"),
    )
    limit: int | None = _data(None, "score so many pairs, chosen at random (default: all)", within="(0, inf)")
    seed: int = _data(0, "of that choice and of intervals", within="[0, inf)")
    device: str = _work("auto", "where the model computes", choices=("auto", "cpu", "cuda"))
    dtype: str = _work(
        "float32", "of its weights; log-probs are float32 in any case", choices=("float32", "bfloat16", "float16")
    )
    batch_tokens: int = _work(4096, "most tokens in a forward pass", within="(0, inf)")

    @classmethod
    def refused(cls, name: str, value: Any, wanted: str) -> ValueError:
        expected = wanted.removesuffix(", or null")
        return EvaluationError(f"--{name.replace('_', '-')} {value}: expected {expected}")
