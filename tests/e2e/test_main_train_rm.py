"""`verl-aiops train-rm` from a file of pairs and groups to a folder that transformers loads."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WORDS = ("no", "maybe", "yes")


def rows_of(at):
    """What is good is told by a word: as a pair with a lead, as a group with scores, as one with ranks."""
    about = {"prompt": [{"role": "user", "content": f"log {at % 5}: disk {at}"}], "group": f"g{at}"}
    if at % 3 == 0:
        return {**about, "chosen": f"yes {at % 4}", "rejected": f"no {at % 4}", "margin": 0.5}
    said = "score" if at % 3 == 1 else "rank"
    number = {"score": float, "rank": lambda place: 3 - place}[said]
    return {**about, "completions": [{"completion": f"{w} {at % 4}", said: number(n)} for n, w in enumerate(WORDS)]}


def test_one_file_of_pairs_and_groups_makes_a_model_that_transformers_scores_with(tiny_model_dir, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    data, out = tmp_path / "mixed.jsonl", tmp_path / "rm"
    data.write_text("".join(json.dumps(rows_of(at)) + "\n" for at in range(24)))
    least = ["train-rm", "--data", str(data), "--val-share", "0.3", "--model", str(tiny_model_dir), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "verl_aiops.cli", *least, "--device", "cpu", "--lr", "1e-2", "--epochs", "3"],
        env={**os.environ, "VERL_AIOPS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stats = json.loads((out / "reward_stats.json").read_text())
    assert stats["held_out"] is True and stats["accuracy"] > 0.9 and stats["reward_std"] > 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert type(model).__name__ in model.config.architectures and model.num_labels == 1
    held_out = [json.loads(line) for line in (out / "pairs.val.jsonl").read_text().splitlines()]
    # one message each; an answer that two rows have is one
    conversations = {
        json.dumps([*row["prompt"], *answer])
        for row in held_out
        for answer in [one["content"] for one in row.get("completions", ())] or [row["chosen"], row["rejected"]]
    }
    texts = [tokenizer.apply_chat_template(json.loads(one), tokenize=False) for one in sorted(conversations)]
    assert len(texts) > 12
    with torch.no_grad():
        how = {"return_tensors": "pt", "add_special_tokens": False}
        together = model(**tokenizer(texts, padding=True, **how)).logits.flatten()
        alone = [model(**tokenizer(text, **how)).logits.item() for text in texts]
    assert together.tolist() == pytest.approx(alone, abs=1e-4), "no row's score is that of its padding"
    assert together.mean().item() == pytest.approx(stats["reward_mean"], abs=1e-3 * stats["reward_std"])
    assert together.std(unbiased=False).item() == pytest.approx(stats["reward_std"], rel=1e-3)
