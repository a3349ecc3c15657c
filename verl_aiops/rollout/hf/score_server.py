"""A reward model in a folder, served by itself as verl's rollout ``hf`` serves it in a run: `verl-aiops serve-rm`.

For the further members of an ensemble, and for `eval --rm URL`, where neither vLLM nor SGLang is.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from fastapi import FastAPI

from verl_aiops.rollout.hf.scorer import HFScorer

__all__ = ["application", "serve"]


def application(
    folder: str, *, dtype: str = "float32", max_model_len: int | None = None, key: str | None = None
) -> FastAPI:
    """What answers at ``/classify``, ``/v1/embeddings`` and ``/health``; the model is loaded here.

    Args:
        dtype: of the weights; the score head computes in float32.
        max_model_len: tokens of a conversation at most; None for the model's positions.
        key: that clients send as a bearer token.

    Raises:
        ValueError: a folder that is no reward model (`score_model.ScoreModel`), or that has no tokenizer.
    """
    from transformers import AutoTokenizer

    path = str(Path(folder).expanduser())
    if not os.path.isdir(path):
        # transformers would take it for the name of a model on a hub
        raise ValueError(f"{folder}: no such folder; name that of a reward model, as `rm` and `train-rm` write it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: its tokenizer cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    rollout = SimpleNamespace(
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=256,
        max_num_batched_tokens=16384,
        free_cache_engine=False,
    )
    model = SimpleNamespace(local_path=path, path=folder, tokenizer=tokenizer, trust_remote_code=False)
    return HFScorer(rollout, model, can_sleep=False, key=key).app


def serve(folder: str, host: str, port: int, **how) -> None:
    """Until it is stopped. ``how``: as `application`."""
    import uvicorn

    app = application(folder, **how)
    print(f"serving {folder} at http://{host}:{port}", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")
