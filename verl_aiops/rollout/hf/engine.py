"""Batched sampling on transformers' own ``generate``: prompt token ids in, sampled ids and their log-probs out."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from verl_aiops.models.company import company_of, depends, forget_lengths, is_compared

__all__ = ["Engine", "Request", "Sampling", "Sampled", "filtered"]

_IGNORED = {"logprobs", "repetition_penalty", "min_p", "n"}
_NEUTRAL = {"repetition_penalty": 1.0, "min_p": 0.0, "n": 1}


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are drawn; ``temperature`` 0 takes the likeliest, ``top_k`` -1 or 0 takes all."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | str | None = None
    ignore_eos: bool = False

    @classmethod
    def from_params(cls, params: dict[str, Any], max_tokens: int) -> Sampling:
        """From the parameters that verl's agent loops send; ``max_tokens`` is used where they name no limit.

        Raises:
            ValueError: a parameter that this engine does not have, or a value that makes no sense.
        """
        given = dict(params)
        limit = given.pop("max_new_tokens", None) or given.pop("max_tokens", None) or max_tokens
        given.pop("max_tokens", None)
        for name in _IGNORED & given.keys():
            value = given.pop(name)
            if name in _NEUTRAL and value not in (None, _NEUTRAL[name]):
                raise ValueError(f"rollout hf: sampling parameter {name}={value} is not supported")
        known = {"temperature", "top_p", "top_k", "seed", "ignore_eos"}
        if unknown := given.keys() - known:
            raise ValueError(f"rollout hf: sampling parameter {sorted(unknown)[0]} is not supported")
        made = cls(max_tokens=min(int(limit), max_tokens), **{k: v for k, v in given.items() if v is not None})
        if made.temperature < 0 or not 0 < made.top_p <= 1:
            raise ValueError(
                f"rollout hf: temperature={made.temperature}, top_p={made.top_p}: expected 0 or more, and above 0 to 1"
            )
        return made


@dataclass(frozen=True)
class Request:
    prompt_ids: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Sampled:
    """Sampled ids, the stop token included; the log-prob of each under the temperature (1 where it is 0), before
    top-p and top-k, which is what verl's trainer computes."""

    token_ids: list[int]
    logps: list[float]
    aborted: bool = False


def filtered(logps: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Log-probs (vocabulary,) with -inf outside the ``top_k`` likeliest and the smallest set that holds ``top_p``."""
    if 0 < top_k < logps.numel():
        logps = logps.masked_fill(logps < logps.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        # as in the nucleus paper (arXiv 1904.09751), the token that passes the threshold belongs to the set
        ordered, order = logps.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        logps = logps.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), -torch.inf)
    return logps


class _Sampler(LogitsProcessor):
    """Draws each row's next token, and leaves ``generate`` only the argmax.

    Gumbel's trick (the argmax of log p - log E, E exponential, is a sample of p) with a generator for each row makes a
    row's sample independent of the rows it happens to be batched with.
    """

    def __init__(self, requests: Sequence[Request], seeds: Sequence[int], device: torch.device):
        self.requests = requests
        # on the model's device: a row of noise that crosses to a GPU for each token costs more than the model does
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.temperatures = torch.tensor([[r.sampling.temperature or 1.0] for r in requests])
        self.logps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logps = (scores.float() / self.temperatures.to(scores.device)).log_softmax(-1)
        if not torch.isfinite(logps.amax(-1)).all():
            raise FloatingPointError("rollout hf: the model's logits are not finite; its weights are broken")
        drawn, noise = logps.clone(), torch.ones_like(logps)
        for row, (request, generator) in enumerate(zip(self.requests, self.generators)):
            sampling = request.sampling
            if sampling.temperature == 0:
                continue
            noise[row].exponential_(generator=generator)
            if sampling.top_p < 1 or sampling.top_k > 0:
                drawn[row] = filtered(drawn[row], sampling.top_p, sampling.top_k)
        drawn -= noise.clamp_min_(1e-30).log_()
        self.logps.append(logps.gather(1, drawn.argmax(-1, keepdim=True)).squeeze(1).cpu())
        return drawn


class _Stop(StoppingCriteria):
    """Ends a row at its stop token or budget, and all rows when the batch is aborted."""

    def __init__(self, requests: Sequence[Request], stops: frozenset[int], prompt_len: int, abort: threading.Event):
        self.budgets = torch.tensor([r.sampling.max_tokens for r in requests])
        self.heed = torch.tensor([not r.sampling.ignore_eos for r in requests])
        self.stops, self.prompt_len, self.abort = torch.tensor(sorted(stops)), prompt_len, abort

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        last = input_ids[:, -1].cpu()
        done = torch.isin(last, self.stops) & self.heed | (input_ids.shape[1] - self.prompt_len >= self.budgets)
        if self.abort.is_set():
            done[:] = True
        return done.to(input_ids.device)


class Engine:
    """Generates for whole batches with one model, one call at a time.

    Args:
        model: a causal language model of transformers.
        stops: ids that end an answer.
        seed: of all sampling; see `generate`. Engines that serve the same prompts need different ones.
    """

    def __init__(self, model, stops: Iterable[int], seed: int | str = 0):
        self.model = model.eval()
        self.stops = frozenset(stops)
        self.seed = seed
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._seen_version: int | None = None

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], version: int = 0, abort: threading.Event | None = None
    ) -> list[Sampled]:
        """Sample an answer to each request; ``abort`` ends all of them at their next token.

        A request's sample depends on its prompt and its own seed. Where it has none: on the engine's seed, ``version``
        (the number of the weights) and how many requests with this prompt these weights have answered. It does not
        depend on the requests beside it.
        """
        if not requests:
            return []
        seeds = self._seeds(requests, version)
        answers: list[Sampled | None] = [None] * len(requests)
        for rows in self._groups(requests):
            group = [requests[row] for row in rows]
            made = self._sample(group, [seeds[row] for row in rows], abort or threading.Event())
            for row, answer in zip(rows, made):
                answers[row] = answer
        return answers

    def _groups(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of requests whose results do not depend on each other when they share forward passes."""
        company = company_of(self.model)
        if company.together is None:
            # left of a shorter prompt stands padding, which not every recurrence passes over
            known = is_compared(self.model)
            company.together = known or not (company.recurrent or self._depends("", (7, 23, 7)))
            company.repeated = company.together or not self._depends(", several answers to a prompt", (7, 7))
        together = company.together
        if together and company.limit is not None:
            longest = max(len(r.prompt_ids) + r.sampling.max_tokens for r in requests)
            together = longest <= company.limit
        if together:
            return [list(range(len(requests)))]
        # those of one prompt have one length, and no padding
        groups: dict[tuple, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault((request.prompt_ids, None if company.repeated else row), []).append(row)
        return list(groups.values())

    def _depends(self, what: str, lengths: tuple[int, ...]) -> bool:
        """Try a prompt of the first length alone, and as first and last beside the others."""
        most = self.model.config.get_text_config().vocab_size
        prompts = [tuple(3 + at % (most - 3) for at in range(length)) for length in lengths]
        sampling = Sampling(4, temperature=0, ignore_eos=True)

        def logps(*prompts: tuple[int, ...]) -> torch.Tensor:
            group = [Request(prompt, sampling) for prompt in prompts]
            made = self._sample(group, [0] * len(group), threading.Event(), together=len(set(prompts)) > 1)
            return torch.tensor([made[0].logps, made[-1].logps])

        name = f"models of type {self.model.config.model_type!r}, generating{what}"
        return depends(name, lambda: logps(prompts[0]), lambda: logps(*prompts), dtype=self.model.dtype)

    def _sample(
        self, requests: Sequence[Request], seeds: Sequence[int], abort: threading.Event, together: bool | None = None
    ) -> list[Sampled]:
        prompts = sorted({r.prompt_ids for r in requests}, key=len)
        company = company_of(self.model)
        if together is None:
            together = bool(company.together)
        if company.each_length:
            forget_lengths(self.model)
        width = max(2 if together else 1, len(prompts[-1]))  # at least one token before the last, for the cache below
        place = {prompt: at for at, prompt in enumerate(prompts)}
        rows = [place[r.prompt_ids] for r in requests]
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        # padding stands on the left: generate appends on the right, where all prompts must end in one column
        for at, prompt in enumerate(prompts):
            ids[at, width - len(prompt) :] = torch.tensor(prompt)
            mask[at, width - len(prompt) :] = 1
        device = self.model.device
        cache = {}
        if together:
            held = self._prefill(ids.to(device), mask.to(device))
            # samples of one prompt share its forward pass: the cache is copied, not computed again
            held.batch_select_indices(torch.tensor(rows, device=device))
            cache = {"past_key_values": held}
        sampler = _Sampler(requests, seeds, device)
        longest = max(r.sampling.max_tokens for r in requests)
        out = self.model.generate(
            input_ids=ids[rows].to(device),
            attention_mask=mask[rows].to(device),
            **cache,
            generation_config=GenerationConfig(
                max_new_tokens=longest,
                do_sample=False,  # the sampler has drawn; the argmax of what it returns is the draw
                # of a row that `_Stop` has ended; `_result` cuts it off again, so any id will do
                pad_token_id=0,
                # rows end by `_Stop` alone, each at its own budget and whether or not it heeds stop tokens
                eos_token_id=None,
                bos_token_id=None,
                # a model that a trainer saved may say no, and generate would feed the cache all tokens anew each time
                use_cache=True,
            ),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([_Stop(requests, self.stops, width, abort)]),
        )
        sampled = out[:, width:].tolist()
        logps = torch.stack(sampler.logps, 1).tolist()
        return [self._result(request, sampled[at], logps[at]) for at, request in enumerate(requests)]

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache:
        """The keys and values of all prompt tokens but the last, which ``generate`` computes itself: the first sampled
        token is drawn from its logits."""
        cache = DynamicCache(config=self.model.config)
        before = mask[:, :-1]
        self.model(
            input_ids=ids[:, :-1],
            attention_mask=before,
            position_ids=(before.cumsum(-1) - 1).clamp_min(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cache

    def _seeds(self, requests: Sequence[Request], version: int) -> list[int]:
        if version != self._seen_version:
            self._seen.clear()
            self._seen_version = version
        seeds = []
        for request in requests:
            # of what is asked, not of its place in a batch: which requests meet in one is a matter of milliseconds
            name = f"{request.sampling.seed}"
            if request.sampling.seed is None:
                name = f"{self.seed}/{version}/{self._seen[request.prompt_ids]}"
                self._seen[request.prompt_ids] += 1
            digest = hashlib.blake2b(f"{name}/{request.prompt_ids}".encode(), digest_size=8).digest()
            seeds.append(int.from_bytes(digest, "big") >> 1)
        return seeds

    def _result(self, request: Request, ids: list[int], logps: list[float]) -> Sampled:
        sampling = request.sampling
        end = min(len(ids), sampling.max_tokens)
        stopped = False
        if not sampling.ignore_eos:
            stop = next((at for at, token in enumerate(ids[:end]) if token in self.stops), None)
            if stop is not None:
                end, stopped = stop + 1, True
        return Sampled(ids[:end], logps[:end], aborted=not stopped and end < sampling.max_tokens)
