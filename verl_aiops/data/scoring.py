"""How a reward model sees a conversation: one text, rendered once, for training and for scoring alike.

Servers tokenise the text themselves and put the tokenizer's own special tokens in front, so a leading
beginning-of-sequence token that the chat template has written is taken off the text.

Messages are data: the spelling of a special token inside one (a policy that writes `<|im_end|>` and a turn of its own)
is broken up, so that only the template opens and closes turns (`control`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verl_aiops.data.template import ChatTemplate

__all__ = ["REWARD_SERVER", "conversation", "scoring_ids", "scoring_text"]

# name of the Ray actor that serves a reward model in the rollout `hf`, before the replica's number
REWARD_SERVER = "hf_server_reward_"


def conversation(prompt: Sequence[Mapping], turns: Sequence[str], rounds: Sequence[str] = ()) -> list[dict]:
    """The messages of a finished dialogue.

    Args:
        prompt: messages before the first answer.
        turns: the assistant's texts, one per round.
        rounds: the user's texts between them.

    Raises:
        ValueError: as many user texts as answers, or more.
    """
    if len(rounds) >= max(1, len(turns)):
        raise ValueError(f"{len(turns)} answers leave room for {max(0, len(turns) - 1)} user texts, got {len(rounds)}")
    messages = [dict(message) for message in prompt]
    for at, turn in enumerate(turns):
        if at:
            messages.append({"role": "user", "content": rounds[at - 1]})
        messages.append({"role": "assistant", "content": turn})
    return messages


def scoring_text(
    tokenizer, messages: Sequence[Mapping], template: ChatTemplate | None = None, *, ask: bool = False
) -> str:
    """The conversation in the reward model's chat template, to be tokenised with special tokens.

    Args:
        messages: dicts with ``role`` and ``content`` (a string).
        template: the tokenizer's, where many conversations are rendered.
        ask: with what the template writes before an answer, for a conversation that waits for one.

    Raises:
        RowFault: the template refuses the messages.
    """
    template = template or ChatTemplate(tokenizer)
    safe = [template.control.broken_up(dict(message)) for message in messages]
    text = template.render(safe, add_generation_prompt=ask)
    bos = tokenizer.bos_token
    # a template that starts with the token that is also the tokenizer's own opening, which the server adds again
    if bos and text.startswith(bos) and _adds(tokenizer, tokenizer.bos_token_id):
        text = text[len(bos) :]
    return text


def scoring_ids(tokenizer, text: str) -> list[int]:
    """Token ids of `scoring_text` as vLLM, SGLang and the rollout ``hf`` read it."""
    return tokenizer(text)["input_ids"]


def _adds(tokenizer, token_id: int) -> bool:
    return tokenizer("a")["input_ids"][:1] == [token_id]
