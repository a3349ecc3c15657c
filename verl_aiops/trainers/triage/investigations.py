"""What runs on investigations are checked for beside those of any task: rows, cases, tools, a right verdict."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_aiops.investigation.tools import tool_names, tool_schemas
from verl_aiops.rewards.investigation.ground_truth import read_investigation_truth
from verl_aiops.rollout.rounds.stops import stop_ids
from verl_aiops.rollout.tools.calls import CallReader
from verl_aiops.rollout.tools.cases import AskedCase, case_of
from verl_aiops.rollout.tools.conversation import ModelTools
from verl_aiops.rollout.tools.prompt import described
from verl_aiops.rollout.tools.settings import ToolSettings
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.common import INVESTIGATION, TOOLS_LOOP
from verl_aiops.trainers.rl.prompt_rows import PromptRules, shown

__all__ = ["InvestigationRules", "check_tools", "right_verdict"]

CASES_READ = 256
"""Cases of a file that are read before a run; the others come from the same file."""


@dataclass(frozen=True)
class InvestigationRules(PromptRules):
    """What a row needs in a run on investigations.

    ``truth``: the reward of investigations scores the answers; ``rewarded``: some rule of `reward_model.ground_truth`
    does. ``read`` counts the cases of each file that were looked at.
    """

    truth: bool = True
    rewarded: bool = True
    read: dict[str, int] = field(default_factory=dict)

    def reward_faults(self, row: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
        return [*self._case_faults(row, info), *(self._truth_faults(row) if self.rewarded else [])]

    def _truth_faults(self, row: Mapping[str, Any]) -> list[str]:
        faults = []
        if not isinstance(row.get("data_source"), str) or not row["data_source"]:
            faults.append(f"data_source: expected {INVESTIGATION!r}, got {shown(row.get('data_source'))}")
        model = row.get("reward_model")
        if not isinstance(model, Mapping) or "ground_truth" not in model:
            return [*faults, f"reward_model: expected an object with ground_truth, got {shown(model)}"]
        if self.truth:
            try:
                read_investigation_truth(model["ground_truth"])
            except ValueError as error:
                faults.append(f"reward_model.{error}")
        return faults

    def _case_faults(self, row: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
        if row.get("agent_name", self.default_loop) != TOOLS_LOOP:
            return []
        file = str(info.get("case_file"))
        self.read[file] = self.read.get(file, 0) + 1
        if self.read[file] > CASES_READ:
            return []
        try:
            case_of(info)
        except (OSError, ValueError) as error:
            return [f"extra_info: expected a case, got {error}"]
        return []


def check_tools(config: DictConfig, run: Run) -> list[str]:
    """Whether this model's template and tokenizer can investigate the first rows: tools, calls, answers, budgets."""
    rows = [row for row in run.rows or () if row.get("agent_name", run.rules.default_loop) == TOOLS_LOOP]
    if not rows:
        return []
    call_format = OmegaConf.select(config, "actor_rollout_ref.rollout.multi_turn.format") or "hermes"
    try:
        model = ModelTools(
            run.tokenizer,
            stop_ids(config.actor_rollout_ref.model.path, run.tokenizer),
            call_format,
            ToolSettings.from_config(config),
            config.data.max_response_length,
            dict(config.data.get("apply_chat_template_kwargs") or {}),
        )
        for row in rows:
            asked = case_of(row.get("extra_info"))
            messages = [dict(message) for message in row[run.rules.prompt_key]]
            tokens = len(model.prompt_ids(messages, asked))
            if tokens > config.data.max_prompt_length:
                return [
                    f"the prompt of case {asked.case.id} has {tokens} tokens with its tools, more than "
                    f"data.max_prompt_length={config.data.max_prompt_length}. Raise it."
                ]
        return _call_faults(model, call_format, messages, asked)
    except (OSError, ValueError) as error:
        return [str(error)]
    except Exception as error:  # a template is a program of its own: what it raises is not limited to some types
        return [f"the chat template cannot write an investigation: {' '.join(str(error).split())}"]


def _call_faults(model: ModelTools, call_format: str, messages: list[dict[str, Any]], asked: AskedCase) -> list[str]:
    """Whether a call, spelled as the prompt or the template shows it, is read."""
    name = tool_names(asked.case)[0]
    if described(messages) if asked.listed is None else asked.listed:
        text = f"<tool_call>\n{json.dumps({'name': name, 'arguments': {}})}\n</tool_call>"
        mend = "the prompt shows calls in the form of hermes: set actor_rollout_ref.rollout.multi_turn.format=hermes"
    else:
        text = _rendered_call(model, name)
        mend = "set actor_rollout_ref.rollout.multi_turn.format to the parser of this model's family"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    read = asyncio.run(CallReader(call_format, model.tokenizer).read(ids, text, tool_schemas(asked.case)))
    if [call.name for call in read] == [name]:
        return []
    where = f"actor_rollout_ref.rollout.multi_turn.format={call_format}"
    return [f"{where} does not read the call {text.strip()[:120]!r}; {mend}."]


def _rendered_call(model: ModelTools, name: str) -> str:
    call = {"id": "call00000", "type": "function", "function": {"name": name, "arguments": {}}}
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    prompt, whole = (
        model.tokenizer.apply_chat_template(part, tokenize=False, **more, **model.template_arguments)
        for part, more in ((talk[:1], {"add_generation_prompt": True}), (talk, {}))
    )
    return whole.removeprefix(prompt)


def right_verdict(truth: str | Mapping[str, Any]) -> str:
    """The verdict that a ground truth asks for, as a model would write it.

    Raises:
        ValueError: it is none that `read_investigation_truth` takes.
    """
    known = read_investigation_truth(truth)
    if not known.causes:
        return json.dumps({"root_causes": [], "verdict": "no_fault" if known.no_fault else "not_enough_evidence"})
    causes = [
        {"component": cause["component"], **({"reason": cause["reason"]} if cause.get("reason") else {})}
        for cause in known.given["root_causes"]
    ]
    return json.dumps({"root_causes": causes}, ensure_ascii=False)
