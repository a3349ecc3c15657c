"""What a row of triage data needs for its answers to be scored.

verl drops an answer whose reward raises without a word, and with it the prompt: a row with a faulty ground truth would
be drawn in every epoch and never trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_aiops.rewards.triage.ground_truth import read_ground_truth, unoffered_fields
from verl_aiops.trainers.preflight.common import REWARD as SOURCE
from verl_aiops.trainers.rl.prompt_rows import PromptRules, shown

__all__ = ["RowRules"]


@dataclass(frozen=True)
class RowRules(PromptRules):
    """What a row needs in a run on triage data.

    ``truth``: the triage rule scores the answers; ``rewarded``: some rule of `reward_model.ground_truth` does;
    ``evidence_weight``: what quotations earn. ``words`` counts rows, as they are looked at, by the words they ask in.
    """

    truth: bool = True
    rewarded: bool = True
    evidence_weight: float = 0.15
    words: Counter[str] = field(default_factory=Counter)

    def reward_faults(self, row: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
        if not self.rewarded:
            return []
        faults = []
        if isinstance(info.get("wording"), str):
            self.words[info["wording"]] += 1
        if not isinstance(row.get("data_source"), str) or not row["data_source"]:
            faults.append(f"data_source: expected {SOURCE!r}, got {shown(row.get('data_source'))}")
        model = row.get("reward_model")
        if not isinstance(model, Mapping) or "ground_truth" not in model:
            return [*faults, f"reward_model: expected an object with ground_truth, got {shown(model)}"]
        if not self.truth:
            return faults
        try:
            read_ground_truth(model["ground_truth"])
            faults += [
                f"reward_model.ground_truth: candidates.{name}: expected the true label among them, as the prompt "
                f"offers no other names, got {shown(model['ground_truth'])}"
                for name in unoffered_fields(model["ground_truth"])
            ]
        except ValueError as error:
            faults.append(f"reward_model.{error}")
        text = info.get("incident_text")
        if text is not None and not isinstance(text, str):
            faults.append(f"extra_info.incident_text: expected text, got {shown(text)}")
        elif not text and info.get("rounds") and self.evidence_weight:
            faults.append(
                "extra_info.incident_text: expected the data part of the prompt, without which quotations can earn "
                f"nothing (evidence_weight={self.evidence_weight:g} of the reward's settings; 0 goes without), "
                f"got {shown(text)}"
            )
        return faults

    def notes(self, sources: Mapping[str, int]) -> list[str]:
        notes = []
        others = {source: count for source, count in sources.items() if source != SOURCE}
        if others and self.truth:
            named = ", ".join(f"{count:,} of {source!r}" for source, count in others.items())
            notes.append(f"rows with another data_source than {SOURCE!r} ({named}) are scored by the triage reward too")
        if len(self.words) > 1:
            named = ", ".join(f"{count:,} in {shown(words)}" for words, count in self.words.most_common())
            notes.append(f"rows ask in different words ({named}): their files were built with different --prompts")
        return notes
