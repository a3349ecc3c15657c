"""verl's vLLM server as far as it can be had without vLLM: its own `generate`, in front of an engine that answers what
it is told. Of vLLM there are the names of its sampling parameters, as vLLM 0.24.0 has them, which our extra pins."""

import ast
import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

SAMPLING = """n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop
stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs logprob_token_ids flat_logprobs detokenize
skip_special_tokens spaces_between_special_tokens include_stop_str_in_output output_kind skip_clone
output_text_buffer_length structured_outputs logit_bias allowed_token_ids extra_args routed_experts_prompt_start
bad_words skip_reading_prefix_cache thinking_token_budget repetition_detection""".split()
CONSTRAINTS = """json regex choice grammar json_object disable_any_whitespace disable_additional_properties
whitespace_pattern structural_tag""".split()


class Parameters(SimpleNamespace):
    """Stands for a class of vLLM's that takes these names alone."""

    names: list[str] = []

    def __init__(self, **given):
        unknown = sorted(set(given) - set(self.names))
        if unknown:
            raise TypeError(f"unexpected keyword arguments {unknown}")
        super().__init__(**dict.fromkeys(self.names), **{})
        self.__dict__.update(given)


class SamplingParams(Parameters):
    names = SAMPLING

    def __init__(self, **given):
        super().__init__(**given)
        # as vLLM checks it
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")


class StructuredOutputsParams(Parameters):
    names = CONSTRAINTS


def source_of(relative):
    """A file of verl's, unimported: it would import vLLM."""
    folder = Path(importlib.util.find_spec("verl").submodule_search_locations[0])
    return ast.parse((folder / relative).read_text(encoding="utf-8"))


def methods(tree, cls, *names):
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    return [node for node in body if getattr(node, "name", None) in names]


class Server:
    """verl's `vLLMHttpServer` of one replica, its engine replaced by `answers`: one list of token ids a request."""

    def __init__(self, answers, max_model_len=4096, **config):
        self.answers, self.asked = list(answers), []
        self.config = _Config(
            max_model_len=max_model_len,
            response_length=80,
            prompt_length=64,
            full_determinism=False,
            mtp=None,
            **config,
        )
        self.model_config = SimpleNamespace(processor=None)
        self.lora_as_adapter, self.replica_rank, self.global_steps = False, 0, 3
        self._disaggregation_role, self._submission_paused, self._admitting, self._rejecting = None, False, 0, False
        self._pd_decode_peers = ()
        self.engine = SimpleNamespace(generate=self._engine_generate)
        tree = source_of("workers/rollout/vllm_rollout/vllm_async_server.py")
        for name, function in _compiled(methods(tree, "vLLMHttpServer", "generate", "_park_until_admitted")).items():
            setattr(self, name, function.__get__(self))

    async def _engine_generate(self, *, prompt, sampling_params, request_id, lora_request, priority):
        # vLLM's classes take another seed, and its engine's process dies of it: no request is answered any more
        if not isinstance(sampling_params.seed, (int, type(None))):
            raise TypeError("seed: expected a whole number or None")
        self.asked.append(
            SimpleNamespace(prompt=prompt, sampling=sampling_params, request=request_id, priority=priority)
        )
        ids = self.answers[len(self.asked) - 1][: sampling_params.max_tokens]
        logprobs = [{token: SimpleNamespace(logprob=-float(token))} for token in ids]
        answer = SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason="stop")
        yield SimpleNamespace(outputs=[answer], num_cached_tokens=0, metrics=None)


class _Config(SimpleNamespace):
    enable_rollout_routing_replay = False

    def get(self, name, default=None):
        return getattr(self, name, default)


def _compiled(functions):
    import asyncio
    import logging

    from verl.utils.tokenizer import normalize_token_ids
    from verl.utils.tracking import RLInsightLogger
    from verl.workers.rollout.replica import TokenOutput

    names = {
        **{"Any": Any, "Optional": Optional, "asyncio": asyncio, "logger": logging.getLogger(__name__)},
        **{"SamplingParams": SamplingParams, "RequestOutput": SimpleNamespace, "TokensPrompt": dict},
        **{"normalize_token_ids": normalize_token_ids, "RLInsightLogger": RLInsightLogger, "TokenOutput": TokenOutput},
        "qwen2_5_vl_dedup_image_tokens": lambda ids, processor: ids,
        "extract_prompt_logprobs": lambda **kwargs: None,
    }
    exec(compile(ast.Module(body=functions, type_ignores=[]), "vllm_async_server.py", "exec"), names)
    return {function.name: names[function.name] for function in functions}


class Client:
    """verl's client in front of a `Server`: what it hands on is what its own signature takes."""

    def __init__(self, server):
        from verl.workers.rollout.llm_server import LLMServerClient

        self.server, self.takes = server, inspect.signature(LLMServerClient.generate)

    async def generate(self, request_id, **request):
        self.takes.bind(self, request_id, **request)
        # as over Ray: the server has a copy
        request["sampling_params"] = dict(request["sampling_params"])
        return await self.server.generate(request_id=request_id, **request)
