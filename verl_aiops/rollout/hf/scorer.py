"""The Ray actor that serves a discriminative reward model for the rollout ``hf``: texts in, one number each out."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from verl_aiops.data.scoring import scoring_ids
from verl_aiops.models.company import company_of, depends, forget_lengths
from verl_aiops.rollout.hf.batcher import Batcher
from verl_aiops.rollout.hf.scoring_api import RefusedError, Scored, build_app

__all__ = ["HFScorer", "ScoreModel"]

# a reward model that shares the trainer's devices is asked only while it is awake; whoever asks for longer than this
# asks a server that nobody wakes
LONGEST_SLEEP_S = 60.0


class ScoreModel:
    """A sequence classifier with one label, and the score it gives to the last token of each input.

    transformers finds that token by comparing ids with the padding token's, which is wrong where padding is the token
    that ends a turn; here it is counted. Encoders, which score their first token, are left to transformers.

    Args:
        folder: of the model: configuration and weights.
        dtype: of the weights; the score head computes in float32.

    Raises:
        ValueError: more labels than one, a head that the folder has no weights for, or an encoder-decoder.
    """

    def __init__(self, folder: str, dtype: torch.dtype, device: str | int, trust_remote_code: bool = False):
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if config.num_labels != 1:
            raise ValueError(
                f"reward model {folder}: {config.num_labels} labels; a reward model has one (num_labels=1 when its "
                "AutoModelForSequenceClassification is made)"
            )
        if config.is_encoder_decoder:
            raise ValueError(f"reward model {folder}: the rollout hf serves decoders and encoders, not both in one")
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(
                f"reward model {folder}: no weights for {', '.join(missing[:3])}; a model without a trained score "
                "head gives random scores"
            )
        self.positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.device = device
        self.model = model.eval().to(device)
        self.scores_last_token = hasattr(model, "score")
        if self.scores_last_token:
            # one number per input: in bfloat16 it would have three digits, and equal ones would be many
            model.score.float()

    def to(self, device: str | int) -> None:
        self.model.to(device)

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        """Raw scores, float32, shape (inputs,), on the CPU; the inputs are token ids, none of them empty."""
        company = company_of(self.model)
        if company.together is None:
            company.together = not self._depends()
        scores = torch.empty(len(inputs))
        for rows in company.groups([len(ids) for ids in inputs]):
            if company.each_length:
                forget_lengths(self.model)
            scores[rows] = self._scores([inputs[row] for row in rows])
        return scores

    def _depends(self) -> bool:
        """Try a short input alone and beside a long one."""
        most = min(self.vocabulary, 1000)
        short, long = ([at % most for at in range(length)] for length in (7, 23))
        name = f"reward models of type {self.model.config.model_type!r}"
        dtype = self.model.dtype
        return depends(name, lambda: self._scores([short]), lambda: self._scores([short, long])[:1], dtype)

    def _scores(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        lengths = torch.tensor([len(ids) for ids in inputs])
        # what stands behind an input is masked, so any id will do
        tokens = torch.zeros(len(inputs), int(lengths.max()), dtype=torch.long)
        for row, ids in enumerate(inputs):
            tokens[row, : len(ids)] = torch.tensor(ids)
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        batch = {"input_ids": tokens.to(self.device), "attention_mask": mask.to(self.device)}
        if not self.scores_last_token:
            return self.model(**batch).logits[:, 0].float().cpu()
        hidden = self.model.base_model(**batch, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(inputs)), lengths - 1]
        return self.model.score(last.float())[:, 0].cpu()


@dataclass(frozen=True)
class _Input:
    prompt_ids: tuple[int, ...]


class HFScorer:
    """Serves one replica of a reward model over HTTP.

    Args:
        config: verl's rollout configuration of the reward model.
        model_config: verl's model configuration of it, with the tokenizer.
        can_sleep: whether `sleep` gives the device away; not where the server has a device of its own.
        workers: servers and training workers that share this machine's cores.
        key: that clients send: the server listens on the node's address, as verl's router may run on another.

    Raises:
        ValueError: a model that cannot be served, or a ``max_model_len`` beyond its positions.
    """

    def __init__(self, config, model_config, can_sleep: bool = True, workers: int = 1, key: str | None = None):
        from verl.utils.device import get_device_id, get_device_name
        from verl.utils.torch_dtypes import PrecisionType

        from verl_aiops.verl_patches.process_group import share_cores

        on_cpu = get_device_name() == "cpu"
        if on_cpu:
            share_cores(workers)
        self.device = "cpu" if on_cpu else get_device_id()
        self.can_sleep = can_sleep and config.free_cache_engine
        self.tokenizer = model_config.tokenizer
        self.model = ScoreModel(
            model_config.local_path,
            PrecisionType.to_dtype(config.dtype),
            self.device,
            trust_remote_code=model_config.trust_remote_code,
        )
        self.max_len = self._longest(config.max_model_len, model_config.local_path)
        self.batcher = Batcher(self._run, config.max_num_seqs, config.max_num_batched_tokens)
        # one thread: a tokenizer is not made for several at once
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokeniser")
        self._key = key
        self.app = build_app(self.score, model_config.path, key)
        self._serving: asyncio.Task | None = None

    def _longest(self, asked: int | None, folder: str) -> int:
        """Tokens of the longest input."""
        positions = self.model.positions
        if asked is None and positions is None:
            raise ValueError(
                f"reward model {folder}: its configuration does not say how long an input may be; set "
                "reward.reward_model.rollout.max_model_len"
            )
        if asked is not None and positions is not None and asked > positions:
            raise ValueError(
                f"reward.reward_model.rollout.max_model_len={asked}, but the reward model has {positions} positions"
            )
        # some encoders have more positions than they can use; their tokenizers know
        return asked or min(positions, self.tokenizer.model_max_length)

    async def launch(self) -> tuple[str, int]:
        """Start to serve on this Ray node; returns address and port."""
        import ray
        from verl.workers.rollout.utils import run_uvicorn

        address = ray.util.get_node_ip_address().strip("[]")
        port, self._serving = await run_uvicorn(self.app, None, address)
        return address, port

    async def key(self) -> str | None:
        """What clients send as a bearer token."""
        return self._key

    async def score(self, asked: str | tuple[int, ...]) -> Scored:
        """Score one input.

        Args:
            asked: a text, which is tokenised with the tokenizer's own special tokens, or token ids.

        Raises:
            RefusedError: 400, nothing to score, too long, or token ids that the model does not have; 500, a score that
                is no finite number; 503, the server sleeps and nobody wakes it.
        """
        ids = await self._ids(asked)
        try:
            await asyncio.wait_for(self.batcher.open.wait(), LONGEST_SLEEP_S)
        except asyncio.TimeoutError:  # noqa: UP041 (another class in Python 3.10)
            raise RefusedError(
                503,
                f"the reward model sleeps, and has not been woken for {LONGEST_SLEEP_S:.0f} s: set "
                "reward.reward_model.rollout.free_cache_engine=False if others than verl's trainer ask it",
            ) from None
        score = await self.batcher.submit(_Input(ids))
        if not math.isfinite(score):
            raise RefusedError(500, f"the reward model's score of these {len(ids)} tokens is {score}")
        return Scored(score, len(ids))

    async def _ids(self, asked: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(asked, str):
            try:
                asked.encode()
            except UnicodeEncodeError as error:
                raise RefusedError(400, f"the text is no Unicode: half a character at {error.start}") from None
            loop = asyncio.get_running_loop()
            ids = tuple(await loop.run_in_executor(self._tokenising, scoring_ids, self.tokenizer, asked))
        else:
            ids = asked
        if not ids:
            raise RefusedError(400, "no tokens to score")
        if len(ids) > self.max_len:
            raise RefusedError(
                400,
                f"{len(ids)} tokens, but the reward model takes {self.max_len} "
                "(reward.reward_model.rollout.max_model_len, or its positions)",
            )
        if min(ids) < 0 or max(ids) >= self.model.vocabulary:
            raise RefusedError(
                400, f"token ids {min(ids)} to {max(ids)}; the model has 0 to {self.model.vocabulary - 1}"
            )
        return ids

    def _run(self, requests: list[_Input], abort: threading.Event) -> list[float]:
        # the batcher counts equal inputs once
        distinct = list(dict.fromkeys(request.prompt_ids for request in requests))
        scores = dict(zip(distinct, self.model(distinct).tolist()))
        return [scores[request.prompt_ids] for request in requests]

    async def sleep(self) -> None:
        """Finish what runs, hold what comes, and leave the device to the trainer."""
        if not self.can_sleep:
            return
        await self.batcher.pause()
        await asyncio.to_thread(self.model.to, "cpu")
        from verl.utils.device import get_torch_device

        get_torch_device().empty_cache()

    async def wake_up(self) -> None:
        await asyncio.to_thread(self.model.to, self.device)
        self.batcher.resume()
