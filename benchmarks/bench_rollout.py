"""The rollout `hf` against transformers' own ways of generating: same model, prompts, budgets and sampling.

    python benchmarks/bench_rollout.py --model models/SmolLM2-135M-Instruct
    python benchmarks/bench_rollout.py --model MODEL --prompts 8 --samples 4 --prompt-tokens 400 --new-tokens 48

Prints sampled tokens/s of the rollout's engine, of `generate` on the padded batch, and of transformers' continuous
batching (which shares no prompt of a group and computes the logits of every prompt token), and how
many times as fast the engine is. All sample the full number of tokens; each is run twice and the second run counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from verl_aiops.rollout.hf.engine import Engine, Request, Sampling


def with_engine(model, prompts, new_tokens) -> None:
    requests = [Request(tuple(p), Sampling(max_tokens=new_tokens, ignore_eos=True)) for p in prompts]
    answers = Engine(model, [], seed=1).generate(requests)
    assert all(len(answer.token_ids) == new_tokens for answer in answers)


def with_generate(model, prompts, new_tokens) -> None:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    config = GenerationConfig(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=True, pad_token_id=0, eos_token_id=None
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert out.shape == (len(prompts), width + new_tokens)


def with_continuous_batching(model, prompts, new_tokens) -> None:
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=True, pad_token_id=0, eos_token_id=-1)
    out = model.generate_batch(
        prompts,
        generation_config=config,
        continuous_batching_config=ContinuousBatchingConfig(return_logprobs=True),
        progress_bar=False,
        warmup=False,
    )
    assert sum(len(answer.generated_tokens) for answer in out.values()) == len(prompts) * new_tokens
    model.set_attn_implementation("sdpa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4, help="answers to each prompt (rollout.n)")
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--out", help="write the result as JSON")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="sdpa")
    model.eval()
    size = len(AutoTokenizer.from_pretrained(arguments.model))
    torch.manual_seed(0)
    groups = torch.randint(3, size, (arguments.prompts, arguments.prompt_tokens)).tolist()
    prompts = [prompt for prompt in groups for _ in range(arguments.samples)]
    tokens = len(prompts) * arguments.new_tokens
    rates = {}
    for name, run in (
        ("rollout hf", with_engine),
        ("generate", with_generate),
        ("continuous batching", with_continuous_batching),
    ):
        for _ in range(2):
            started = time.perf_counter()
            run(model, prompts, arguments.new_tokens)
            rates[name] = tokens / (time.perf_counter() - started)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {len(prompts)} answers")
    for name, rate in rates.items():
        print(f"{name:<20} {rate:8.1f} tokens/s   rollout hf is {rates['rollout hf'] / rate:.2f}x")
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump({**vars(arguments), "tokens_per_s": rates}, file, indent=1)


if __name__ == "__main__":
    main()
