"""Greedy answers of a model to the prompts of a preference file, scored by the triage reward."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from verl_aiops.reasoning import reasoning_of, visible
from verl_aiops.rewards.aiops_mturn import compute_score
from verl_aiops.rewards.triage.ground_truth import read_ground_truth

__all__ = ["AnswerScores", "generate_answers", "read_questions", "score_answers", "wilson_interval"]


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), sensible for small n and shares near 0 or 1."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


@dataclass(frozen=True)
class AnswerScores:
    """Shares over the questions asked: valid JSON, right service, right type, both right."""

    n: int
    json_ok: float
    service_ok: float
    type_ok: float
    acc_main: float


def read_questions(path: str, limit: int | None = None, seed: int = 0) -> list[dict]:
    """One row per prompt of a preference parquet made by ``verl-aiops build-prefs``: all, or ``limit`` at random.

    Raises:
        ValueError: the file cannot be read, or lacks ``prompt`` or ``ground_truth``; names file and row.
    """
    import numpy as np

    from verl_aiops.data.reading import open_files

    (file,) = open_files(path)
    rows = {}
    for record in file.records(["id", "prompt", "ground_truth"], np.arange(file.rows)):
        if record.fault:
            raise ValueError(f"{record.where}: {record.fault}")
        missing = {"prompt", "ground_truth"} - set(record.values)
        if missing:
            raise ValueError(
                f"{record.where}: no column {', '.join(sorted(missing))}; found {', '.join(file.columns or ())}. "
                "Answers can be scored for files made by `verl-aiops build-prefs`."
            )
        prompt = record.values["prompt"]
        if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
            raise ValueError(f"{record.where}: prompt: expected messages, as `verl-aiops build-prefs` writes them")
        try:
            read_ground_truth(record.values["ground_truth"])
        except ValueError as error:
            raise ValueError(f"{record.where}: {error}") from None
        rows[json.dumps(prompt, sort_keys=True)] = record.values
    questions = list(rows.values())
    if limit is None or limit >= len(questions):
        return questions
    return random.Random(seed).sample(questions, limit)


def generate_answers(
    model_dir: str, questions: Sequence[dict], *, max_new_tokens: int = 64, batch_size: int = 8, description: str = ""
) -> list[str]:
    """Greedy continuations without special tokens and reasoning blocks, in the order of the questions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from verl_aiops.kernels.cpu_linear import use_onednn
    from verl_aiops.rollout.hf.engine import Engine, Request, Sampling
    from verl_aiops.rollout.rounds.stops import stop_ids
    from verl_aiops.rollout.rounds.turns import answer_text

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    thinks, stops = reasoning_of(tokenizer), stop_ids(model_dir, tokenizer)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).to(device)
    use_onednn(model)
    engine = Engine(model, stops)
    greedy = Sampling(max_new_tokens, temperature=0)
    prompts = [
        tokenizer.apply_chat_template(list(q["prompt"]), add_generation_prompt=True, tokenize=False) for q in questions
    ]
    # prompts of like length share a batch, so that little is spent on padding
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in tqdm(range(0, len(order), batch_size), desc=f"Answers {description}".strip(), unit="batch"):
        batch = order[start : start + batch_size]
        ids = tokenizer([prompts[i] for i in batch], add_special_tokens=False)["input_ids"]
        for i, made in zip(batch, engine.generate([Request(tuple(row), greedy) for row in ids]), strict=True):
            if thinks is None:
                answers[i] = tokenizer.decode(made.token_ids, skip_special_tokens=True)
            else:  # in some families the markers are special tokens
                text, _ = answer_text(tokenizer, made.token_ids, stops)
                answers[i] = visible(text, thinks.name, thinks.opened).text
    return answers


def score_answers(questions: Sequence[dict], answers: Sequence[str]) -> AnswerScores:
    """Mean of the reward's parts over the questions; only the last round is asked, so nothing is quoted."""
    scores = [
        compute_score("aiops_mturn", answer, question["ground_truth"])
        for question, answer in zip(questions, answers, strict=True)
    ]
    return AnswerScores(
        n=len(scores),
        **{k: sum(s[k] for s in scores) / len(scores) for k in ("json_ok", "service_ok", "type_ok", "acc_main")},
    )
