"""The token stream of a conversation in rounds: what the model wrote stays as it was, what stands between is rendered.

Rendering the whole conversation again with the chat template and tokenising it would give other tokens than those the
model produced (merges across the border, stripped spaces, removed reasoning), and training on tokens that were never
sampled. So only the text *between* two answers is rendered, and its tokens are appended.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_aiops.inputs.shown import brief
from verl_aiops.seam.rollout import ContinuousTokenBuilder, MergeResult, apply_chat_template

__all__ = ["Stream", "TemplateTurns", "answer_text", "next_round", "round_budgets", "rounds_of"]

# stands for an answer while the template is rendered; templates strip spaces and look for tags, so it has neither
_SENTINEL = "verlAiopsAnswerStandsHere"
ANSWER_TOKENS = 64


@dataclass(frozen=True)
class _Border:
    """What stands between an answer and the next: tokens that end the assistant's turn, then those of the user's
    messages and the generation prompt. ``instead`` ends a turn as well as the first of ``closing`` does."""

    closing: list[int]
    between: list[int]
    instead: int | None = None


class TemplateTurns(ContinuousTokenBuilder):
    """A token builder for every family: the border between rounds is read off the chat template itself.

    verl's default builder appends the rendered next message right after the model's last token. A template writes more
    there (ChatML a line break after ``<|im_end|>``), and an answer that was cut has no end of turn at all. verl's
    builders of families know such borders by the model's type, of which there are models with other tokenizers and
    templates.
    """

    def merge_context_tokens(
        self,
        previous_messages: list[dict[str, Any]],
        updated_messages: list[dict[str, Any]],
        runtime_token_ids: list[int],
        *,
        tools: list[dict[str, Any]] | None = None,
    ) -> MergeResult:
        """Close the model's turn where it did not, and append the messages that follow it, with a generation prompt.

        Args:
            previous_messages: ends with the assistant's message whose tokens end ``runtime_token_ids``.
            updated_messages: the same and the new messages.

        Raises:
            ValueError: the template does not render an answer as it is written.
        """
        self._assert_append_only(previous_messages, updated_messages)
        new = tuple(m["content"] for m in updated_messages[len(previous_messages) :])
        inserted, between = self._joined(runtime_token_ids, self._between(new))
        return MergeResult(
            token_ids=[*runtime_token_ids, *inserted, *between],
            appended_token_count=len(between),
            inserted_token_ids=inserted,
        )

    def tool_replies(self, replies: Sequence[tuple[str, str]], runtime_token_ids: list[int]) -> list[int]:
        """The tokens between a message that calls tools, which ends ``runtime_token_ids``, and the next message.

        Args:
            replies: name of the tool and what it returned, in the order of the calls.

        Raises:
            ValueError: the template has no way to write what a tool returned.
        """
        inserted, between = self._joined(runtime_token_ids, self._before_reply(replies))
        return [*inserted, *between]

    def _joined(self, ids: list[int], border: _Border) -> tuple[list[int], list[int]]:
        """What ends the model's turn where it did not, and what follows it."""
        inserted = border.closing[self._written(ids, border) :]
        between = border.between
        if not border.closing and between and ids[-1:] == between[:1]:
            # in some families (GLM) an answer ends with the token that opens the user's turn
            between = between[1:]
        return inserted, between

    @staticmethod
    def _written(ids: list[int], border: _Border) -> int:
        """How many tokens of the closing end the model's own."""
        closing = border.closing
        if border.instead is not None and ids[-1:] == [border.instead]:
            return 1
        return next(k for k in range(len(closing), -1, -1) if k == 0 or ids[-k:] == closing[:k])

    def between(self, texts: tuple[str, ...]) -> list[int]:
        """All tokens between an answer that was cut and the next one, with the user's ``texts`` in between."""
        border = self._between(texts)
        return [*border.closing, *border.between]

    def closing(self) -> list[int]:
        """The tokens that end an answer at the end of a conversation."""
        return self._encode(self._after_answer(self._answered, add_generation_prompt=False))

    @functools.cached_property
    def _cache(self) -> dict[tuple[str, ...], _Border]:
        return {}

    @property
    def _answered(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]

    def _between(self, texts: tuple[str, ...]) -> _Border:
        if texts not in self._cache:
            users = [{"role": "user", "content": text} for text in texts]
            rest = self._after_answer([*self._answered, *users], add_generation_prompt=True)
            closing = self._after_answer(self._answered, add_generation_prompt=False)
            if rest.startswith(closing):
                self._cache[texts] = _Border(self._encode(closing), self._encode(rest[len(closing) :]))
            else:
                self._cache[texts] = self._ended_otherwise(closing, rest)
        return self._cache[texts]

    def _before_reply(self, replies: Sequence[tuple[str, str]]) -> _Border:
        calls = [
            {"id": f"call{at:05d}", "type": "function", "function": {"name": name, "arguments": {}}}
            for at, (name, _) in enumerate(replies)
        ]
        results = [
            {"role": "tool", "name": name, "content": text, "tool_call_id": call["id"]}
            for (name, text), call in zip(replies, calls)
        ]
        closing = self._after_answer(self._answered, add_generation_prompt=False)
        before = self._answered
        try:
            rest = self._after_answer([*before, *results], add_generation_prompt=True)
        except Exception:  # some templates want the calls that results belong to; they raise what they like
            user, answer = before
            before = [user, {**answer, "tool_calls": calls}]
            rest = self._after_answer([*before, *results], add_generation_prompt=True)
        written = self._after_answer(before, add_generation_prompt=False)
        if not rest.startswith(written):
            if before == self._answered:
                return self._ended_otherwise(closing, rest)
            raise ValueError(f"the chat template writes calls otherwise where their results follow: {rest[:80]!r}")
        end = self._encode(closing) if written.endswith(closing) else self._encode(written)[-1:]
        return _Border(end, self._encode(rest[len(written) :]))

    def _ended_otherwise(self, closing: str, rest: str) -> _Border:
        """The border of a template that ends a conversation in another way than a turn: with one token more (Phi-3's
        end of sequence), or with another one (gpt-oss's ``<|return|>`` for ``<|end|>``)."""
        last, ids = self._encode(closing), self._encode(rest)
        same = next((at for at, (a, b) in enumerate(zip(last, ids)) if a != b), min(len(last), len(ids)))
        if same:
            return _Border(ids[:same], ids[same:])
        special = set(self.tokenizer.all_special_ids) | {
            at for at, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        if last and ids and last[0] in special and ids[0] in special:
            return _Border(ids[:1], ids[1:], instead=last[0])
        raise ValueError(
            f"the chat template ends an answer with {closing!r} at the end of a conversation, but not before a "
            f"user's message ({rest[:80]!r}), so rounds cannot be joined; use a template that does"
        )

    def _after_answer(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        text = apply_chat_template(
            self.tokenizer,
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self.chat_template_kwargs,
        )
        before, found, after = text.partition(_SENTINEL)
        if not found or _SENTINEL in after:
            raise ValueError("the chat template does not render an assistant's text once and unchanged")
        return after

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


@dataclass
class Stream:
    """Tokens of one conversation behind its prompt, with what training needs to know of each.

    ``ids``, ``mask`` and ``logps`` have one entry per token: 1 in ``mask`` where the model wrote it. ``logps`` is None
    when the engine gives none; 0.0 stands for tokens that the model did not write.
    """

    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logps: list[float] | None = field(default_factory=list)

    @property
    def all_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.ids]

    def add_answer(self, ids: list[int], logps: list[float] | None) -> None:
        """Append what the model wrote.

        Raises:
            ValueError: as many log-probs as tokens are needed, in every round or in none.
        """
        if logps is not None and len(logps) != len(ids):
            raise ValueError(f"the rollout engine gave {len(logps)} log-probs for {len(ids)} tokens")
        if logps is None:
            if self.logps and any(self.mask):
                raise ValueError("the rollout engine gave log-probs in one round and none in the next")
            self.logps = None
        elif self.logps is None:
            raise ValueError("the rollout engine gave log-probs in one round and none in another")
        else:
            self.logps.extend(logps)
        self.ids.extend(ids)
        self.mask.extend([1] * len(ids))

    def add_context(self, ids: list[int]) -> None:
        """Append what stands between two answers; no loss is taken on it."""
        self.ids.extend(ids)
        self.mask.extend([0] * len(ids))
        if self.logps is not None:
            self.logps.extend([0.0] * len(ids))


def answer_text(tokenizer: Any, ids: list[int], stops: frozenset[int]) -> tuple[str, bool]:
    """What the model wrote, and whether it was cut before it ended its turn.

    Only the token that ends the turn is left out. Special tokens elsewhere stay in the text: an answer with one in its
    middle is not the JSON it would be without.
    """
    ended = bool(ids) and ids[-1] in stops
    return tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False), not ended


def next_round(template: TemplateTurns, answered: list[dict[str, Any]], text: str, ids: list[int]) -> list[int]:
    """The tokens between the answer that ends ``ids`` and the next one.

    Args:
        answered: the messages up to that answer, which is the last of them.
        text: the user's text of the next round.
        ids: all tokens so far.
    """
    merged = template.merge_context_tokens(answered, [*answered, {"role": "user", "content": text}], ids)
    return merged.token_ids[len(ids) :]


def rounds_of(extra_info: Any) -> list[str]:
    """The user texts of the rounds after the first.

    Raises:
        ValueError: not a list of texts.
    """
    rounds = (extra_info or {}).get("rounds")
    if rounds is None:
        return []
    # numpy's arrays are no sequence by class, and a text is one of texts
    texts = None if isinstance(rounds, str) or not hasattr(rounds, "__len__") else list(rounds)
    if texts is None or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f'extra_info["rounds"]: expected the user text of each later round, found {brief(rounds)}')
    return texts


def round_budgets(total: int, between: list[int], round_tokens: list[int] | None, answer_tokens: int) -> list[int]:
    """How many tokens the model may write in each round.

    Args:
        total: tokens of the whole response, ``data.max_response_length``.
        between: tokens between the rounds, one number less than there are rounds.
        round_tokens: what the user set, None for a division: the last round gets ``answer_tokens``, the earlier ones
            share the rest evenly. Fewer entries than rounds: the last one stands for those that are missing.
        answer_tokens: of the last round, where ``round_tokens`` is None and there is more than one.

    Raises:
        ValueError: it does not fit.
    """
    rounds = len(between) + 1
    room = total - sum(between)
    if round_tokens is not None:
        budgets = [*round_tokens[:rounds], *round_tokens[-1:] * (rounds - len(round_tokens))]
    elif rounds == 1:
        budgets = [room]
    else:
        share, rest = divmod(room - answer_tokens, rounds - 1)
        budgets = [share + (at < rest) for at in range(rounds - 1)] + [answer_tokens]
    if min(budgets) < 1 or sum(budgets) > room:
        asked = sum(round_tokens[:rounds]) if round_tokens is not None else answer_tokens + rounds - 1
        raise ValueError(
            f"data.max_response_length={total} holds {room} tokens of answers in {rounds} rounds, as the instructions "
            f"between them take {sum(between)}, but the rounds need {max(asked, sum(budgets))} (budgets {budgets}). "
            f"Raise data.max_response_length to {max(asked, sum(budgets)) + sum(between)} or more, or lower "
            "actor_rollout_ref.rollout.custom.aiops_mturn.round_tokens or .answer_tokens."
        )
    return budgets
