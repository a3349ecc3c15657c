"""The agent loop ``aiops_tools``: one investigation of a case with tools, in one trajectory.

The data chooses it (column ``agent_name``) and names the case. Works with every rollout of verl.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.rollout_trace import rollout_trace_op

from verl_aiops.rollout.rounds.stops import stop_ids
from verl_aiops.rollout.tools.cases import case_of
from verl_aiops.rollout.tools.conversation import Conversation, ModelTools
from verl_aiops.rollout.tools.settings import ToolSettings
from verl_aiops.seam.rollout import AgentLoopMetrics, simple_timer

__all__ = ["AiopsToolsAgentLoop"]


class AiopsToolsAgentLoop(AgentLoopBase):
    """Generate a message, answer the calls in it, generate, until a message calls nothing or the budget is used up.

    The reward gets ``extra_info["turns"]``, the assistant's texts, and ``tool_calls`` and ``turn_calls``
    (`rollout.tools.desk`). A message that used up its budget without ending is flagged in ``round_cut``.
    """

    def __init__(self, *args, **kwargs):
        try:
            super().__init__(*args, **kwargs)
        except ValueError:
            # as in `rollout.rounds.agent_loop`: a builder of verl's that wants tokens which this tokenizer lacks
            super().__init__(*args, **{**kwargs, "hf_model_type": None})
        self.model = ModelTools(
            self.tokenizer,
            stop_ids(self.config.actor_rollout_ref.model.path, self.tokenizer),
            OmegaConf.select(self.rollout_config, "multi_turn.format") or "hermes",
            ToolSettings.from_section(OmegaConf.select(self.rollout_config, "custom.aiops_tools")),
            self.rollout_config.response_length,
            dict(self.apply_chat_template_kwargs),
        )

    @rollout_trace_op
    async def run(
        self, sampling_params: dict[str, Any], priority: int = 0, session_id: int = 0, **kwargs
    ) -> AgentLoopOutput:
        """One trajectory.

        Args:
            sampling_params: verl's, shared by all rows: never changed here.
            session_id: number of this answer to its prompt.
            kwargs: the row: ``raw_prompt`` (messages before the first one of the model's) and ``extra_info``.

        Raises:
            ValueError: a case that cannot be read, or a prompt that is too long with its tools.
        """
        asked = await self.loop.run_in_executor(None, case_of, kwargs.get("extra_info"))
        messages = [dict(message) for message in kwargs["raw_prompt"]]
        prompt_ids = await self.loop.run_in_executor(None, self.model.prompt_ids, messages, asked)
        longest = self.rollout_config.prompt_length
        if len(prompt_ids) > longest:
            raise ValueError(
                f"the prompt of case {asked.case.id} has {len(prompt_ids)} tokens with its tools, more than "
                f"data.max_prompt_length={longest}"
            )
        conversation = Conversation(self.model, asked, prompt_ids)
        deterministic = getattr(self.rollout_config, "full_determinism", False)
        # one id for all messages: the balancer then keeps them on one server, which has the prefix in its cache
        request_id = f"det-{int(priority)}" if deterministic else uuid4().hex
        sampling = dict(sampling_params)
        if self.rollout_config.name == "hf":
            # a sample that does not depend on the replica or the batch that the request comes to
            sampling["seed"] = f"{self.rollout_config.seed}/{kwargs.get('global_steps')}/{session_id}"
        elif more := self.model.reader.stops:
            sampling["stop_token_ids"] = sorted({*(sampling.get("stop_token_ids") or ()), *more})
        metrics: dict[str, Any] = {}
        while not conversation.over:
            budget = conversation.budget()
            with simple_timer("generate_sequences", metrics):
                output = await self.server_manager.generate(
                    request_id=request_id,
                    prompt_ids=conversation.stream.all_ids,
                    sampling_params={**sampling, "max_tokens": budget},
                    priority=int(priority),
                )
            # what follows is counted on the budget being kept, whatever an engine gives
            ids = list(output.token_ids)[:budget]
            logps = list(output.log_probs)[:budget] if output.log_probs is not None else None
            with simple_timer("tool_calls", metrics):
                await conversation.take(ids, logps)
        stream, preempted = conversation.stream, output.num_preempted
        return AgentLoopOutput(
            prompt_ids=stream.prompt_ids,
            response_ids=stream.ids,
            response_mask=stream.mask,
            response_logprobs=stream.logps,
            routed_experts=output.routed_experts,
            multi_modal_data={},
            num_turns=len(messages) + len(conversation.turns) + sum(map(bool, conversation.desk.per_turn)),
            metrics=AgentLoopMetrics(**metrics, num_preempted=-1 if preempted is None else preempted),
            extra_fields={
                **output.extra_fields,
                "turns": conversation.turns,
                "round_cut": [int(cut) for cut in conversation.cut],
                **conversation.desk.fields(),
                "turn_scores": [],
                "tool_rewards": [],
            },
        )
