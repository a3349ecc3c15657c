"""HTTP forms of a reward model's scores: vLLM's ``/classify``, SGLang's ``/v1/embeddings``, and ``/health``.

Requests are read by hand: a body that is no JSON, or JSON with what UTF-8 cannot carry, gets an answer in one form too.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

logger = logging.getLogger(__name__)

# a conversation of a million tokens is a few megabytes; verl's clients send one at a time
LONGEST_BODY = 16 << 20
MOST_INPUTS = 1024

__all__ = ["RefusedError", "Scored", "build_app"]


class RefusedError(Exception):
    """A request without a score; ``status`` is the HTTP status, the message goes to the client as JSON."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Scored:
    """A finite raw score, and the number of tokens that it was computed from."""

    score: float
    tokens: int


def build_app(
    score: Callable[[str | tuple[int, ...]], Awaitable[Scored]], model: str, key: str | None = None
) -> FastAPI:
    """The application that serves scores.

    Args:
        score: scores one input, a text or token ids; raises `RefusedError` where there is no score.
        model: name of the model in answers.
        key: what clients send as a bearer token; None to answer anybody. ``/health`` needs none.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        # verl's router passes the status on as 500 and drops the message, so the log is where it can be read
        logger.warning("%s refused (%d): %s", request.url.path, error.status, error)
        body = {"error": {"message": str(error), "type": _TYPES[error.status], "code": error.status}}
        return JSONResponse(body, error.status)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        asked = _payload(await _body(request, key), {"use_activation"})
        # vLLM's default is the activation: a sigmoid where there is one label
        activation = asked.get("use_activation")
        if activation is not None and not isinstance(activation, bool):
            raise RefusedError(400, f"use_activation: expected true or false, got {_shown(activation)}")
        results = await _scores(score, _inputs(asked))
        data = [
            {
                "index": index,
                "label": None,
                "probs": [result.score if activation is False else _sigmoid(result.score)],
                "num_classes": 1,
            }
            for index, result in enumerate(results)
        ]
        return JSONResponse({"object": "list", "model": model, "data": data, "usage": _usage(results)})

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> JSONResponse:
        asked = _payload(await _body(request, key), {"encoding_format"})
        if asked.get("encoding_format") not in (None, "float"):
            raise RefusedError(400, f"encoding_format: only float is served, got {_shown(asked['encoding_format'])}")
        results = await _scores(score, _inputs(asked))
        data = [
            {"object": "embedding", "index": index, "embedding": [result.score]} for index, result in enumerate(results)
        ]
        return JSONResponse({"object": "list", "model": model, "data": data, "usage": _usage(results)})

    return app


_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    413: "RequestTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


async def _body(request: Request, key: str | None) -> bytes:
    """The body of a client that may ask, as far as it is not longer than any that makes sense."""
    sent = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
    if key is not None and not hmac.compare_digest(sent, f"Bearer {key}".encode()):
        raise RefusedError(401, "the key of this run is needed as a bearer token")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_BODY:
            raise RefusedError(413, f"a body of more than {LONGEST_BODY} bytes")
    return bytes(body)


def _payload(body: bytes, also: set[str]) -> dict[str, Any]:
    """The request's keys that are set; a key that would be ignored is refused, as it would change the score."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is no JSON: {type(error).__name__}") from None
    if not isinstance(payload, dict):
        raise RefusedError(400, f"the body: expected an object with 'input', got {_shown(payload)}")
    payload = {key: value for key, value in payload.items() if value is not None}
    known = {"model", "input"} | also
    if unknown := sorted(payload.keys() - known):
        raise RefusedError(400, f"{_shown(unknown[0])} is not supported; known: {', '.join(sorted(known))}")
    return payload


def _inputs(payload: dict[str, Any]) -> list[str | tuple[int, ...]]:
    asked = payload.get("input")
    if isinstance(asked, str) or _is_ids(asked):
        asked = [asked]
    if not isinstance(asked, list) or not asked:
        raise RefusedError(400, f"input: expected a text, a list of token ids, or a list of such, got {_shown(asked)}")
    if len(asked) > MOST_INPUTS:
        raise RefusedError(413, f"input: {len(asked)} texts; at most {MOST_INPUTS} in one request")
    inputs: list[str | tuple[int, ...]] = []
    for index, one in enumerate(asked):
        if isinstance(one, str):
            inputs.append(one)
        elif _is_ids(one):
            inputs.append(tuple(one))
        else:
            raise RefusedError(400, f"input {index}: expected a text or a list of token ids, got {_shown(one)}")
    return inputs


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


async def _scores(
    score: Callable[[str | tuple[int, ...]], Awaitable[Scored]], inputs: Sequence[str | tuple[int, ...]]
) -> list[Scored]:
    """All of the request's scores; the first input without one decides the answer."""
    results = await asyncio.gather(*[score(one) for one in inputs], return_exceptions=True)
    for index, result in enumerate(results):
        if isinstance(result, RefusedError):
            raise RefusedError(result.status, f"input {index}: {result}")
        if isinstance(result, BaseException):
            raise RefusedError(500, f"input {index}: {type(result).__name__}: {_shown(str(result))}")
    return list(results)


def _sigmoid(score: float) -> float:
    # of the negative magnitude, whose exponential cannot overflow
    small = math.exp(-abs(score))
    return (1.0 if score >= 0 else small) / (1.0 + small)


def _usage(results: Sequence[Scored]) -> dict[str, int]:
    tokens = sum(result.tokens for result in results)
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def _shown(value: Any) -> str:
    """The beginning of a value that a client sent, in characters that every encoding has."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return ascii(value)[:80]
