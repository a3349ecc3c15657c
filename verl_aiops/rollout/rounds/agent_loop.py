"""The agent loop ``aiops_mturn``: the prompt's own rounds, one answer each, in one trajectory.

The data chooses it (column ``agent_name``) and brings the later rounds' user texts in ``extra_info["rounds"]``; without
them it is a single-turn loop. Works with every rollout of verl.
"""

from __future__ import annotations

import functools
from typing import Any
from uuid import uuid4

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.rollout_trace import rollout_trace_op

from verl_aiops.rollout.rounds.settings import RoundSettings, answer_constraint, asked_fields
from verl_aiops.rollout.rounds.stops import stop_ids
from verl_aiops.rollout.rounds.turns import Stream, TemplateTurns, answer_text, next_round, round_budgets, rounds_of
from verl_aiops.seam.rollout import AgentLoopMetrics, simple_timer

__all__ = ["AiopsMturnAgentLoop"]


class AiopsMturnAgentLoop(AgentLoopBase):
    """Generate round 1, append the next round's instruction as a user's message, generate, and so on.

    The rounds' texts reach the reward as ``extra_info["turns"]``. A round that used up its budget without ending its
    turn is cut there and flagged in ``round_cut``.
    """

    def __init__(self, *args, **kwargs):
        try:
            super().__init__(*args, **kwargs)
        except ValueError:
            # verl's token builder for the model's type wants tokens that this tokenizer lacks (DeepSeek-R1-Distill-Qwen
            # is a qwen2 without <|im_end|>); the default one renders the prompt, and no more is asked of it
            super().__init__(*args, **{**kwargs, "hf_model_type": None})
        self.settings = RoundSettings.from_section(OmegaConf.select(self.rollout_config, "custom.aiops_mturn"))
        self.stops = stop_ids(self.config.actor_rollout_ref.model.path, self.tokenizer)
        self.template = TemplateTurns(self.tokenizer, chat_template_kwargs=dict(self.apply_chat_template_kwargs))

    @rollout_trace_op
    async def run(
        self, sampling_params: dict[str, Any], priority: int = 0, session_id: int = 0, **kwargs
    ) -> AgentLoopOutput:
        """One trajectory.

        Args:
            sampling_params: verl's, shared by all rows: never changed here.
            session_id: number of this answer to its prompt.
            kwargs: the row: ``raw_prompt`` (messages before the first answer) and ``extra_info``; ``reward_model``
                says which fields an answer has.

        Raises:
            ValueError: rounds that do not fit into ``data.max_response_length``, or are no texts.
        """
        messages = list(kwargs["raw_prompt"])
        rounds = rounds_of(kwargs.get("extra_info"))
        between = [len(self.template.between((text,))) for text in rounds]
        budgets = round_budgets(
            self.rollout_config.response_length, between, self.settings.round_tokens, self.settings.answer_tokens
        )
        stream = Stream(await self.ct_build_initial_tokens(messages))
        deterministic = getattr(self.rollout_config, "full_determinism", False)
        # one id for all rounds: the balancer then keeps them on one server, which has the prefix in its cache
        request_id = f"det-{int(priority)}" if deterministic else uuid4().hex
        turns: list[str] = []
        cuts: list[int] = []
        metrics: dict[str, Any] = {}
        with simple_timer("generate_sequences", metrics):
            for at, budget in enumerate(budgets):
                last = at == len(budgets) - 1
                sampling = {**sampling_params, "max_tokens": budget}
                if self.rollout_config.name == "hf":
                    # a sample that does not depend on the replica or the batch that the request comes to
                    sampling["seed"] = f"{self.rollout_config.seed}/{kwargs.get('global_steps')}/{session_id}"
                if last and self.settings.json_schema:
                    sampling |= answer_constraint(self.rollout_config.name, asked_fields(kwargs))
                output = await self.server_manager.generate(
                    request_id=request_id, prompt_ids=stream.all_ids, sampling_params=sampling, priority=int(priority)
                )
                # what follows is counted on the budget being kept, whatever an engine gives
                ids = list(output.token_ids)[:budget]
                stream.add_answer(ids, list(output.log_probs)[:budget] if output.log_probs is not None else None)
                text, cut = answer_text(self.tokenizer, ids, self.stops)
                turns.append(text)
                cuts.append(int(cut))
                if not last:
                    messages.append({"role": "assistant", "content": text})
                    between_rounds = functools.partial(
                        next_round, self.template, list(messages), rounds[at], stream.all_ids
                    )
                    stream.add_context(await self.loop.run_in_executor(None, between_rounds))
                    messages.append({"role": "user", "content": rounds[at]})
        preempted = output.num_preempted
        return AgentLoopOutput(
            prompt_ids=stream.prompt_ids,
            response_ids=stream.ids,
            response_mask=stream.mask,
            response_logprobs=stream.logps,
            routed_experts=output.routed_experts,
            multi_modal_data={},
            num_turns=len(messages) + 1,
            metrics=AgentLoopMetrics(**metrics, num_preempted=-1 if preempted is None else preempted),
            extra_fields={
                **output.extra_fields,
                "turns": turns,
                "round_cut": cuts,
                "turn_scores": [],
                "tool_rewards": [],
            },
        )
