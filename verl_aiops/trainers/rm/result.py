"""What a reward model's folder says beside its weights: how held-out answers are scored and ranked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops.data.dataset import group_of
from verl_aiops.data.scored_rows import padding_token
from verl_aiops.evaluation.stats.calibration import Calibration, calibrate, stats_of, write_stats
from verl_aiops.inputs.shown import counted

__all__ = ["HeldOut", "write_result"]


@dataclass(frozen=True)
class HeldOut:
    """Scores of held-out answers: ``scores`` of each once, and how ``calibration`` finds them ranked; None where no
    two answers are compared and none has a label."""

    scores: np.ndarray
    calibration: Calibration | None

    @classmethod
    def of(cls, examples: Sequence[Mapping[str, Any]], scores: Sequence[np.ndarray]) -> HeldOut:
        """From items of `PreferenceDataset` and the scores of their answers, in their order.

        What is compared: the answers of a pair, every two of different rank in a list, a single answer with 0. How
        sure the share of right ones is goes by the rows' groups, or prompts where they have none.
        """
        margins: list[float] = []
        groups: list[str] = []
        answers: dict[int, float] = {}
        for item, of_item in zip(examples, scores, strict=True):
            answers.update(zip(item["answer_numbers"], of_item.tolist()))
            if item["kind"] == "pair":
                margins.append(float(of_item[0] - of_item[1]))
            elif item["kind"] == "single":
                margins.append(float(of_item[0] if item["label"] else -of_item[0]))
            else:
                for one, other in combinations(range(len(of_item)), 2):
                    # the best first
                    if item["ranks"][one] < item["ranks"][other]:
                        margins.append(float(of_item[one] - of_item[other]))
            groups += [group_of(item)] * (len(margins) - len(groups))
        return cls(np.array(list(answers.values())), calibrate(margins, groups) if margins else None)


def write_result(
    folder: Path,
    result: HeldOut,
    *,
    tokenizer: Any,
    last_tokens: set[int],
    more: Mapping[str, Any],
    title: str,
) -> list[str]:
    """Complete the folder of a merged reward model.

    transformers finds a conversation's last token by its padding token: the configuration names one that no
    conversation ends with, or none where the tokenizer has no such token, and then one row at a time can be scored.

    Returns:
        lines for the user.
    """
    lines = []
    padding = padding_token(tokenizer, last_tokens)
    if padding is None:
        lines.append(
            "warning: every special token of the tokenizer ends a conversation, so none is left to pad with: "
            "transformers scores one conversation at a time (vLLM, SGLang and the rollout hf do not pad)"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["pad_token_id"] = padding
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if padding is not None and padding != tokenizer.pad_token_id:
        from transformers import AutoTokenizer

        saved = AutoTokenizer.from_pretrained(folder)
        saved.pad_token = saved.convert_ids_to_tokens(padding)
        saved.save_pretrained(folder)
    found = result.calibration
    stats = {**stats_of(result.scores, found), **more}
    write_stats(folder, stats, found, title)
    which = "held-out" if more.get("held_out") else "training (nothing is held out: they prove nothing)"
    if found is not None:
        lines.append(
            f"{which} answers: of {counted(found.pairs, 'comparison')} in {counted(found.groups, 'group')} "
            f"{found.ranked}, log-loss {found.log_loss:.3f}, calibration error {found.error:.3f}"
        )
    lines.append(f"their scores: mean {stats['reward_mean']:.3f}, standard deviation {stats['reward_std']:.3f}")
    return lines
