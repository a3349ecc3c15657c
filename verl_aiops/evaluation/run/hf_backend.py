"""Answers of a model in a folder: the agent loop's token streams, sampled by the engine of the rollout ``hf``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.data.kept_text import check_keeps_text
from verl_aiops.evaluation.device import device_and_dtype
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import Done, Generation, Job, SamplingOptions, budgets_of
from verl_aiops.evaluation.run.questions import Question
from verl_aiops.models.folders import ModelFolder
from verl_aiops.reasoning import reasoning_of, reward_settings

if TYPE_CHECKING:
    from verl_aiops.rollout.hf.engine import Engine
    from verl_aiops.rollout.rounds.turns import Stream

__all__ = ["LocalBackend"]


@dataclass
class _Conversation:
    job: Job
    budgets: list[int]
    messages: list[dict[str, str]]
    stream: Stream
    made: Generation = field(default_factory=lambda: Generation(tokens=[]))


class LocalBackend:
    """Generates on this machine's accelerator, or its CPU.

    A sample depends on its prompt and seed alone, not on the batch that it is in.

    Args:
        model: where the model lies; it is loaded when the first answer is generated.
        options: how answers are drawn.
        batch: conversations at a time.
        dtype: of the weights; ``auto`` is float32 on CPU and bfloat16 on an accelerator.
        scratch: folder where a checkpoint is merged; it is removed afterwards.

    Raises:
        EvaluationError: the folder's tokenizer cannot be used.
    """

    def __init__(self, model: ModelFolder, options: SamplingOptions, batch: int, dtype: str, scratch: Path):
        from transformers import AutoConfig
        from verl.utils import hf_tokenizer

        from verl_aiops.rollout.rounds.stops import stop_ids
        from verl_aiops.rollout.rounds.turns import TemplateTurns

        self.model, self.options, self.batch, self.dtype, self.scratch = model, options, batch, dtype, scratch
        folder = str(model.settings)
        try:
            self.config = AutoConfig.from_pretrained(folder)
            self.tokenizer = hf_tokenizer(folder)
        except Exception as error:  # transformers raises what its readers raise
            raise EvaluationError(
                f"--model {model.path}: its configuration or tokenizer cannot be loaded: {_line(error)}"
            ) from error
        if self.tokenizer.chat_template is None:
            raise EvaluationError(f"--model {model.path}: its tokenizer has no chat template; name an instruct model")
        self.stops = stop_ids(folder, self.tokenizer)
        kwargs = dict(options.chat_template_kwargs)
        self.reasoning = reward_settings(reasoning_of(self.tokenizer, kwargs))
        self.template = TemplateTurns(self.tokenizer, chat_template_kwargs=kwargs)

    def check(self, questions: Sequence[Question]) -> None:
        """Render every prompt and see that all rounds fit into the model's positions.

        Raises:
            EvaluationError: the template refuses a prompt, the tokenizer loses text, or there is no room for it.
        """
        try:
            check_keeps_text(self.tokenizer, [m["content"] for question in questions[:8] for m in question.messages])
        except PreferenceDataError as error:
            raise EvaluationError(f"--model {self.model.path}: {error}") from None
        room = getattr(self.config, "max_position_embeddings", None)
        too_long = []
        for question in questions:
            needed = len(self._prompt_ids(question)) + sum(self._budgets(question)) + sum(self._between(question))
            if room is not None and needed > room:
                too_long.append((needed, question.id))
        if too_long:
            longest, name = max(too_long)
            raise EvaluationError(
                f"--model {self.model.path} has {room} positions, but {len(too_long)} prompts with their answers need "
                f"more (the longest {longest}, {name}); build them with a smaller --max-chars, or lower "
                "--max-response-length or --round-tokens"
            )

    def generate(self, jobs: Sequence[Job], done: Done) -> None:
        if not jobs:
            return
        engine = self._engine
        # long prompts first: if memory is too small, that shows at once; samples of one prompt share its forward pass
        lengths = {job.question.id: len(self._prompt_ids(job.question)) for job in jobs}
        order = sorted(jobs, key=lambda job: (-lengths[job.question.id], job.question.id, job.sample))
        for start in range(0, len(order), self.batch):
            for conversation in self._converse(engine, order[start : start + self.batch]):
                done(conversation.job, conversation.made)

    @cached_property
    def _engine(self) -> Engine:
        from transformers import AutoModelForCausalLM

        from verl_aiops.kernels.cpu_linear import use_onednn
        from verl_aiops.platform.attention import plain_attention
        from verl_aiops.rollout.hf.engine import Engine

        device, dtype = device_and_dtype(self.dtype)
        options = {"dtype": dtype, "attn_implementation": plain_attention(self.config)}
        with self.model.weights(self.scratch) as folder:
            try:
                model = AutoModelForCausalLM.from_pretrained(folder, **options)
            except Exception as error:  # as above
                raise EvaluationError(f"--model {self.model.path}: cannot be loaded: {_line(error)}") from error
        use_onednn(model.to(device))
        return Engine(model, self.stops)

    def _converse(self, engine: Engine, jobs: Sequence[Job]) -> list[_Conversation]:
        """All rounds of a batch; conversations may differ in the number of rounds."""
        from verl_aiops.rollout.rounds.turns import Stream

        conversations = [
            _Conversation(
                job, self._budgets(job.question), list(job.question.messages), Stream(self._prompt_ids(job.question))
            )
            for job in jobs
        ]
        for at in range(max(len(conversation.budgets) for conversation in conversations)):
            self._one_round(engine, at, [c for c in conversations if at < len(c.budgets)])
        return conversations

    def _one_round(self, engine: Engine, at: int, conversations: Sequence[_Conversation]) -> None:
        import torch

        from verl_aiops.rollout.hf.engine import Request, Sampling
        from verl_aiops.rollout.rounds.turns import answer_text, next_round

        requests = [
            Request(
                tuple(c.stream.all_ids),
                Sampling(c.budgets[at], self.options.temperature, self.options.top_p, seed=c.job.seed),
            )
            for c in conversations
        ]
        try:
            sampled = engine.generate(requests)
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"{len(requests)} conversations at a time need more memory than there is; lower --concurrency "
                f"({_line(error)})"
            ) from error
        except FloatingPointError as error:
            raise EvaluationError(f"--model {self.model.path}: {error}") from error
        for conversation, answer in zip(conversations, sampled):
            stream, made = conversation.stream, conversation.made
            stream.add_answer(answer.token_ids, answer.logps)
            text, cut = answer_text(self.tokenizer, answer.token_ids, self.stops)
            made.turns.append(text)
            made.cut.append(cut)
            made.tokens.append(len(answer.token_ids))
            if at + 1 == len(conversation.budgets):
                continue
            user = conversation.job.question.rounds[at]
            conversation.messages.append({"role": "assistant", "content": text})
            stream.add_context(next_round(self.template, conversation.messages, user, stream.all_ids))
            conversation.messages.append({"role": "user", "content": user})

    # --- tokens of a question -----------------------------------------------------------------------------------------

    @cached_property
    def _prompts(self) -> dict[tuple[str, str], list[int]]:
        return {}

    def _prompt_ids(self, question: Question) -> list[int]:
        key = question.id, question.messages[-1]["content"]
        if key not in self._prompts:
            try:
                self._prompts[key] = self.template.build_initial_tokens(list(question.messages))
            except Exception as error:  # templates raise what they like
                raise EvaluationError(
                    f"{question.id}: the chat template of {self.model.path} refuses the prompt: {_line(error)}"
                ) from error
        return self._prompts[key]

    def _between(self, question: Question) -> list[int]:
        try:
            return [len(self.template.between((text,))) for text in question.rounds]
        except Exception as error:
            raise EvaluationError(f"--model {self.model.path}: {_line(error)}") from error

    def _budgets(self, question: Question) -> list[int]:
        return budgets_of(question, self.options, self._between(question))


def _line(error: Exception) -> str:
    text: Any = " ".join(str(error).split())
    return text[:300] or type(error).__name__
