"""The judge as verl's reward function, for GRPO, PPO and online DPO.

    reward.custom_reward_function.path=pkg://verl_aiops.rewards.model.judge_reward
    +reward.custom_reward_function.reward_kwargs.url=http://host:8000/v1/chat/completions
    +reward.custom_reward_function.reward_kwargs.model=NAME

`compute_score` raises where there is no verdict: verl then leaves the answer without a reward, and this package's
trainers count it and end the run (`max_failed_share`); nothing becomes a zero.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from verl_aiops.rewards.model.judge import Judge
from verl_aiops.rewards.model.judge_prompts import JudgeError
from verl_aiops.rewards.model.judge_settings import JudgeSettings

__all__ = ["compute_score"]

# by event loop and settings: connections belong to a loop, and what was asked is kept
_JUDGES: dict[tuple[int, tuple], tuple[Judge, JudgeSettings]] = {}
_LIMITS: tuple[str, ...] = (
    *("longest_text", "max_tokens", "timeout_s", "deadline_s", "attempts", "backoff_s", "concurrency", "most_requests"),
    *("cache_size", "cache_dir"),
)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **settings: Any,
) -> dict[str, float]:
    """A judge's verdict on one answer.

    Args:
        solution_str: the answer; of a dialogue with ``extra_info["turns"]`` its last text.
        extra_info: of the row; ``request_key`` has the request's text, and for ``pairwise`` ``reference_key`` an answer
            to compare with, or a list of which the last one is.
        reward_router_address: of the run's own ``reward.reward_model``, the judge where there is no ``url``: a language
            model that verl serves by vLLM or SGLang.
        settings: the fields of `judge_settings.JudgeSettings`.

    Returns:
        ``score``; and for ``pairwise`` ``judge_tie`` and ``judge_same_place`` (0 or 1), whose means are logged: how
        often both orders gave no winner, and how often since the judge named the same place twice.

    Raises:
        JudgeError: no verdict.
        ValueError: settings that cannot work, or a row without what is asked for.
    """
    judge, asked = _judge(reward_router_address, settings)
    info = dict(extra_info or {})
    request = info.get(asked.request_key)
    if not isinstance(request, str) or not request.strip():
        raise ValueError(f"extra_info[{asked.request_key!r}] has no text to judge the answer by; set request_key")
    turns = info.get("turns")
    answer = str(list(turns)[-1]) if turns is not None and len(turns) else solution_str
    if not answer.strip():
        raise JudgeError("an empty answer is not judged; give it its reward by the rule")
    if asked.mode == "pointwise":
        return {"score": await judge.rate(request, answer)}
    reference = info.get(asked.reference_key)
    if reference is not None and not isinstance(reference, str):
        reference = list(reference)[-1] if len(reference) else None
    if not isinstance(reference, str) or not reference.strip():
        raise ValueError(f"extra_info[{asked.reference_key!r}] has no answer to compare with; set reference_key")
    found = await judge.prefer(request, answer, reference)
    return {
        "score": found.score,
        "judge_tie": float(found.score == 0.5),
        "judge_same_place": float(found.by_place),
    }


def _judge(router: str | None, settings: Mapping[str, Any]) -> tuple[Judge, JudgeSettings]:
    known = (id(asyncio.get_running_loop()), (router, *sorted(settings.items(), key=str)))
    if known not in _JUDGES:
        asked = JudgeSettings.of_run(dict(settings))
        if asked.url is None and router is None:
            raise ValueError(
                "no judge: set reward_kwargs.url, or reward.reward_model.enable=True for one that verl serves"
            )
        url = asked.url or f"http://{router}/v1/chat/completions"
        limits: dict[str, Any] = {name: getattr(asked, name) for name in _LIMITS} | asked.prompt()
        judge = Judge(url=url, model=asked.model, key=os.environ.get(asked.key_env), **limits)
        _JUDGES[known] = judge, asked
    return _JUDGES[known]
