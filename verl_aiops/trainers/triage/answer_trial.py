"""One right answer, written as the model's chat template and tokenizer would write it, put before the reward: a run in
which it earns nothing would train on noise, and is stopped before Ray starts."""

from __future__ import annotations

import json
import os.path
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, open_dict

from verl_aiops.reasoning import MARKERS, Found, reasoning_of, reward_settings
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.common import INVESTIGATION, LOOPS

__all__ = ["as_written", "set_reasoning", "try_right_answer"]

_THOUGHT = "I look at the data first."
_SETTING = "reward.custom_reward_function.reward_kwargs.reasoning"


def set_reasoning(config: DictConfig, tokenizer: Any) -> list[str]:
    """Set the reward's ``reasoning`` where the model has markers for it and the user says nothing.

    Returns:
        one line per key that was filled in.
    """
    custom = config.reward.custom_reward_function
    given = dict(custom.get("reward_kwargs") or {})
    if {"reasoning", "reasoning_opened"} & given.keys():
        return []
    values = reward_settings(reasoning_of(tokenizer, _template_arguments(config)))
    if not values:
        return []
    with open_dict(config):
        custom.reward_kwargs = {**given, **values}
    name = _SETTING.rpartition(".")[0]
    return [f"{name}.{key}={value}  (the chat template's reasoning blocks)" for key, value in values.items()]


def _template_arguments(config: DictConfig) -> dict[str, Any]:
    return dict(config.data.get("apply_chat_template_kwargs") or {})


def try_right_answer(config: DictConfig, tokenizer: Any, stops: frozenset[int], row: Mapping[str, Any]) -> None:
    """Score the right answer to a row.

    Args:
        row: that `rows` found no fault with.
        stops: ids that end generation.

    Raises:
        ConfigError: it is not the right answer any more.
    """
    compute_score, right = _rule_and_right(row)
    truth = row["reward_model"]["ground_truth"]
    info = row.get("extra_info") or {}
    messages = [dict(message) for message in row[config.data.get("prompt_key") or "prompt"]]
    rounds = list(info.get("rounds") or ())
    for text in rounds:
        messages += [{"role": "assistant", "content": _THOUGHT}, {"role": "user", "content": text}]
    arguments = _template_arguments(config)
    loop = row.get("agent_name", config.actor_rollout_ref.rollout.agent.default_agent_loop)
    written = as_written(tokenizer, messages, right, stops, arguments, special=loop in LOOPS)
    settings = dict(config.reward.custom_reward_function.get("reward_kwargs") or {})
    turns = {"turns": [*[_THOUGHT] * len(rounds), written], "incident_text": info.get("incident_text")}
    result = compute_score(row.get("data_source"), written, truth, turns, **settings)
    if result.get("acc_all", result["acc_main"]):
        return
    found = reasoning_of(tokenizer, arguments)
    mend = "give the model folder another chat template (actor_rollout_ref.model.custom_chat_template)"
    if found is not None and not result["json_ok"]:
        mend = f"set +{_SETTING}={found.name}, or +data.apply_chat_template_kwargs.enable_thinking=False, or {mend}"
    raise ConfigError(
        f"the right answer {right} earns {result['score']:.2f} (json_ok {result['json_ok']:.0f}) once this model's "
        f"chat template and tokenizer have written it: {written[:200]!r}. Every answer of the run would be read so; "
        f"{mend}."
    )


def _rule_and_right(row: Mapping[str, Any]) -> tuple[Callable[..., dict[str, float]], str]:
    """The reward of the row's task, and the right answer to the row."""
    truth = row["reward_model"]["ground_truth"]
    if row.get("data_source") == INVESTIGATION:
        from verl_aiops.rewards import aiops_investigation
        from verl_aiops.trainers.triage.investigations import right_verdict

        return aiops_investigation.compute_score, right_verdict(truth)
    from verl_aiops.rewards import aiops_mturn
    from verl_aiops.rollout.rounds.settings import asked_fields

    labels = json.loads(truth) if isinstance(truth, str) else truth
    # what a row asks for and does not know may be answered by anything
    right = json.dumps({name: labels.get(name) or "-" for name in asked_fields(row)}, ensure_ascii=False)
    return aiops_mturn.compute_score, right


def as_written(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    answer: str,
    stops: frozenset[int],
    arguments: Mapping[str, Any],
    special: bool = True,
) -> str:
    """An answer as a rollout would decode it, had the model written what the template renders for it.

    Args:
        special: whether special tokens stay in the text, as our agent loop and rollouts have it.

    Raises:
        ConfigError: the template does not render it as it is, or ends it with no token that ends generation.
    """
    from verl_aiops.rollout.rounds.turns import answer_text

    try:
        prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **arguments)
        whole = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": answer}], tokenize=False, **arguments
        )
    except Exception as error:  # a template is a program of its own: what it raises is not limited to some types
        raise ConfigError(
            f"the chat template refuses a conversation of the data: {' '.join(str(error).split())}"
        ) from None
    begin = len(os.path.commonprefix([prompt, whole]))
    at = whole.find(answer, begin)
    if at < 0:
        raise ConfigError(
            f"the chat template writes the answer {answer} otherwise than it is: {whole[begin:][:200]!r}; use another"
        )
    lead = whole[begin:at]
    if begin < len(prompt):
        # the generation prompt does not come back in the conversation: what it opens is the model's to close
        lead = _closing(tokenizer, arguments)
    after = tokenizer.encode(whole[at + len(answer) :], add_special_tokens=False)
    if whole[at + len(answer) :].strip() and not stops.intersection(after):
        raise ConfigError(
            f"the chat template ends an answer with {whole[at + len(answer) :][:40]!r}, which holds no token that ends "
            f"generation ({', '.join(map(repr, tokenizer.convert_ids_to_tokens(sorted(stops))))}): answers would go on "
            "after their end. Add the id of the token that ends a turn to eos_token_id in generation_config.json"
        )
    ids = tokenizer.encode(lead + whole[at:], add_special_tokens=False)
    end = next((place + 1 for place, token in enumerate(ids) if token in stops), len(ids))
    if not special:
        return tokenizer.decode(ids[:end], skip_special_tokens=True)
    return answer_text(tokenizer, ids[:end], stops)[0]


def _closing(tokenizer: Any, arguments: Mapping[str, Any]) -> str:
    found: Found | None = reasoning_of(tokenizer, arguments)
    return f"{_THOUGHT}\n{MARKERS[found.name].close}\n\n" if found is not None and found.opened else ""
