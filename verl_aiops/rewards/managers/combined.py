"""The reward manager ``aiops_combined``: a rule and a reward model together, each part by its own name."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from verl import DataProto
from verl.utils.fs import copy_to_local

from verl_aiops.data.scoring import REWARD_SERVER, conversation, scoring_ids, scoring_text
from verl_aiops.rewards.investigation.transcript import messages_of
from verl_aiops.rewards.managers.triage import AiopsMturnRewardManager
from verl_aiops.rewards.model.client import RewardModelClient, RewardModelError, longest_input
from verl_aiops.rewards.model.combined import CombinedSettings, combine
from verl_aiops.rewards.model.ensemble import MEMBER, Member, joined, spread
from verl_aiops.rewards.model.running_stats import MomentsReader
from verl_aiops.rewards.model.transform import Moments, read_stats

logger = logging.getLogger(__name__)

__all__ = ["AiopsCombinedRewardManager"]


def _key_of(server: str) -> str | None:
    """The key that the embedded server of this run wants, from its Ray actor; other servers have none."""
    if server != "hf":
        return None
    import ray

    if not ray.is_initialized():  # a server that nothing of verl's has started
        return os.environ.get("VERL_AIOPS_SCORER_KEY")
    return ray.get(ray.get_actor(f"{REWARD_SERVER}0").key.remote())


@dataclass(frozen=True)
class _Other:
    """A member of an ensemble beside the run's own reward model."""

    client: RewardModelClient
    tokenizer: Any
    moments: Moments
    room: int | None
    weight: float

    @classmethod
    def of(cls, member: Member, settings: CombinedSettings) -> _Other:
        from transformers import AutoTokenizer

        client = RewardModelClient(
            member.address,
            member.server,
            member.name,
            timeout_s=settings.timeout_s,
            deadline_s=settings.deadline_s,
            attempts=settings.attempts,
            backoff_s=settings.backoff_s,
            concurrency=settings.concurrency,
            key=os.environ.get("VERL_AIOPS_SCORER_KEY") if member.server == "hf" else None,
        )
        folder = os.path.expanduser(member.path)
        moments = read_stats(folder) if settings.normalise == "stored" else Moments()
        room = longest_input(folder, None)
        return cls(client, AutoTokenizer.from_pretrained(folder), moments, room, member.weight)


class AiopsCombinedRewardManager(AiopsMturnRewardManager):
    """`rewards.combined` on the rule of ``reward.custom_reward_function`` and the server of ``reward.reward_model``.

    An answer that the reward model gives no score for gets NaN and a reason; the trainers end the run or leave it out.
    """

    def __init__(
        self,
        config,
        tokenizer,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer=None,
    ):
        # the rule does not get the server: it would be one more, unbounded, way to it
        super().__init__(config, tokenizer, compute_score)
        self.settings = CombinedSettings.from_config(config)
        self.client: RewardModelClient | None = None
        self.rm_tokenizer = None
        self.others: list[_Other] = []
        if reward_router_address is not None:
            self._connect(config, reward_router_address, reward_model_tokenizer)
        elif self.settings.uses_rm:
            raise ValueError(f"reward.combined.mode={self.settings.mode} needs reward.reward_model.enable=True")

    def _connect(self, config, address: str, tokenizer) -> None:
        rm, settings = config.reward.reward_model, self.settings
        self.rm_tokenizer = tokenizer
        trusted = bool(OmegaConf.select(config, "actor_rollout_ref.model.trust_remote_code"))
        self.room = longest_input(copy_to_local(rm.model_path), rm.rollout.max_model_len, trusted)
        self.moments = MomentsReader(settings.first_moments(rm.model_path), running=settings.normalise == "running")
        self.client = RewardModelClient(
            address,
            rm.rollout.name,
            rm.model_path,
            timeout_s=settings.timeout_s,
            deadline_s=settings.deadline_s,
            attempts=settings.attempts,
            backoff_s=settings.backoff_s,
            concurrency=settings.concurrency,
            key=_key_of(rm.rollout.name),
        )
        self.others = [_Other.of(member, settings) for member in settings.others]

    async def run_single(self, data: DataProto) -> dict:
        """One session's reward: that of its final output.

        Returns:
            ``reward_score``, and in ``reward_extra_info`` all that the rule returned, with ``score`` the combined one;
            ``rule``; and with a reward model, on every row, ``rm_raw``, ``rm`` (shaped), ``rm_failed`` (0 or 1) and
            ``rm_error`` (text, empty where all is well). With several, ``rm_raw`` is the first one's, ``rm`` the
            ensemble's, ``rm_member_N`` each one's shaped score and ``rm_spread`` their standard deviation.
        """
        result = await super().run_single(data)
        rule, parts = float(result["reward_score"]), result["reward_extra_info"]
        raw, shaped = math.nan, math.nan
        if self.client is not None:
            raw, error = await self._raw(self.client, data[-1:][0].non_tensor_batch, data)
            if not error:
                moments = await self.moments.at(data[-1:][0].non_tensor_batch.get("global_steps"))
                shaped = self.settings.shaping.shape(raw, moments)
            if self.others:
                shaped, error = await self._ensemble(shaped, error, data[-1:][0].non_tensor_batch, data, parts)
            parts |= {"rm_raw": raw, "rm": shaped, "rm_failed": float(bool(error)), "rm_error": error}
        score = combine(self.settings, rule, shaped, bool(parts.get("json_ok", False)))
        parts |= {"score": score, "rule": rule}
        return {"reward_score": score, "reward_extra_info": parts}

    async def _ensemble(self, first: float, error: str, row: dict, data: DataProto, parts: dict) -> tuple[float, str]:
        """The members' score and the first reason why one has none; puts each one's into ``parts``."""
        asked = [self._raw(other.client, row, data, other.tokenizer, other.room) for other in self.others]
        found = await asyncio.gather(*asked)
        shaped = [first] + [
            self.settings.shaping.shape(raw, other.moments) for other, (raw, _) in zip(self.others, found, strict=True)
        ]
        weights = [1.0, *(other.weight for other in self.others)]
        parts |= {f"{MEMBER}{at}": score for at, score in enumerate(shaped)}
        parts["rm_spread"] = spread(shaped, weights)
        error = next(filter(None, (error, *(reason for _, reason in found))), "")
        return joined(self.settings.ensemble, shaped, weights, self.settings.ensemble_k), error

    async def _raw(
        self, client: RewardModelClient, row: dict, data: DataProto, tokenizer: Any = None, room: int | None = None
    ) -> tuple[float, str]:
        """The raw score, or NaN and the reason; ``tokenizer`` and ``room`` of a member other than the first."""
        room = self.room if tokenizer is None else room
        tokenizer = self.rm_tokenizer if tokenizer is None else tokenizer
        try:
            text, tokens = await self.loop.run_in_executor(None, lambda: self._text(row, data, tokenizer))
            if room is not None and tokens > room:
                # verl's router makes an error 500 of the server's refusal, which would be tried again and again
                raise RewardModelError(f"the dialogue has {tokens} tokens, the reward model takes {room}")
            return await client.score(text), ""
        except RewardModelError as error:
            logger.warning("aiops_combined: %s", error)
            return math.nan, str(error)

    def _text(self, row: dict, data: DataProto, tokenizer: Any) -> tuple[str, int]:
        """The dialogue for the reward model, and its tokens."""
        prompt = list(row["raw_prompt"])
        fields = row.get("tool_extra_fields") or {}
        turns = fields.get("turns")
        if turns and "tool_calls" in fields:
            messages = [*prompt, *messages_of(turns, fields["tool_calls"])]
            text = scoring_text(tokenizer, messages)
            return text, len(scoring_ids(tokenizer, text))
        if turns:
            rounds = list((row.get("extra_info") or {}).get("rounds") or ())[: len(turns) - 1]
        else:
            turns, rounds = [self._decoded(data)], []
        text = scoring_text(tokenizer, conversation(prompt, turns, rounds))
        return text, len(scoring_ids(tokenizer, text))

    def _decoded(self, data: DataProto) -> str:
        item = data[-1:][0]
        ids = item.batch["responses"]
        count = int(item.batch["attention_mask"][-ids.shape[-1] :].sum()) if ids.shape[-1] else 0
        ids = ids[:count].tolist()
        # the token that ends the turn is the template's to write; what comes before it is the answer as it was written
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return self.tokenizer.decode(ids, skip_special_tokens=False)
