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
from pathlib import Path
from typing import Any

from verl_aiops.rewards.model.judge import Judge, JudgeError, check_prompt

__all__ = ["compute_score"]

# by event loop and settings: connections belong to a loop, and what was asked is kept
_JUDGES: dict[tuple[int, tuple], Judge] = {}


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    model: str,
    url: str | None = None,
    mode: str = "pointwise",
    prompt_file: str | None = None,
    key_env: str = "OPENAI_API_KEY",
    request_key: str = "incident_text",
    reference_key: str = "answers",
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **limits: Any,
) -> dict[str, float]:
    """A judge's verdict on one answer.

    Args:
        solution_str: the answer; of a dialogue with ``extra_info["turns"]`` its last text.
        extra_info: of the row; ``request_key`` has the request's text, and for ``pairwise`` ``reference_key`` an answer
            to compare with, or a list of which the last one is.
        url, model: of the judge, see `Judge`. Without a url the run's own ``reward.reward_model`` is the judge, a
            language model that verl serves by vLLM or SGLang (``reward_router_address``). The key is read from the
            environment variable ``key_env``.
        mode: ``pointwise``: a mark from 0 to 1. ``pairwise``: 1 where the answer is better than the data's own in both
            orders, 0 where it is worse in both, else 0.5.
        prompt_file: a prompt in place of `judge.POINTWISE` or `judge.PAIRWISE`.
        limits: further fields of `Judge`: ``max_tokens``, ``timeout_s``, ``attempts``, ``most_requests``, ...

    Returns:
        ``score``; and for ``pairwise`` ``judge_tie`` and ``judge_same_place`` (0 or 1), whose means are logged: how
        often both orders gave no winner, and how often since the judge named the same place twice.

    Raises:
        JudgeError: no verdict.
        ValueError: an unknown mode, a prompt that is none, or a row without what is asked for.
    """
    if mode not in ("pointwise", "pairwise"):
        raise ValueError(f"mode={mode!r}: expected pointwise or pairwise")
    info = dict(extra_info or {})
    request = info.get(request_key)
    if not isinstance(request, str) or not request.strip():
        raise ValueError(f"extra_info[{request_key!r}] has no text to judge the answer by; set request_key")
    turns = info.get("turns")
    answer = str(list(turns)[-1]) if turns is not None and len(turns) else solution_str
    if url is None and reward_router_address is None:
        raise ValueError("no judge: set reward_kwargs.url, or reward.reward_model.enable=True for one that verl serves")
    url = url or f"http://{reward_router_address}/v1/chat/completions"
    judge = _judge(url=url, model=model, mode=mode, prompt_file=prompt_file, key=os.environ.get(key_env), **limits)
    if not answer.strip():
        raise JudgeError("an empty answer is not judged; give it its reward by the rule")
    if mode == "pointwise":
        return {"score": await judge.rate(request, answer)}
    reference = info.get(reference_key)
    if reference is not None and not isinstance(reference, str):
        reference = list(reference)[-1] if len(reference) else None
    if not isinstance(reference, str) or not reference.strip():
        raise ValueError(f"extra_info[{reference_key!r}] has no answer to compare with; set reference_key")
    found = await judge.prefer(request, answer, reference)
    return {
        "score": found.score,
        "judge_tie": float(found.score == 0.5),
        "judge_same_place": float(found.by_place),
    }


def _judge(*, mode: str, prompt_file: str | None, **settings: Any) -> Judge:
    asked = (id(asyncio.get_running_loop()), (mode, prompt_file, *sorted(settings.items(), key=str)))
    if asked not in _JUDGES:
        prompt: dict[str, Any] = {}
        if prompt_file:
            path = Path(os.path.expanduser(prompt_file))
            try:
                prompt = {mode: check_prompt(path.read_text(encoding="utf-8"), mode)}
            except OSError as error:
                raise ValueError(f"prompt_file={prompt_file}: {error.strerror or error}") from None
        _JUDGES[asked] = Judge(**settings, **prompt)
    return _JUDGES[asked]
