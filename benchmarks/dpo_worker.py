"""verl's training worker with our preference engine outside Ray, on random models and random pairs."""

from __future__ import annotations

import time
from pathlib import Path

import torch

SIZES = {
    # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "small": (256, 768, 6, 4, 2, 32_000),
    "135m": (576, 1536, 30, 9, 3, 49_152),
    "1.5b": (1536, 8960, 28, 12, 2, 151_936),
    "7b": (3584, 18944, 28, 28, 4, 152_064),
}


def qwen2_config(shape: tuple[int, ...], **more):
    """Qwen2's configuration for a shape as in `SIZES`."""
    from transformers import Qwen2Config

    hidden, inner, layers, heads, kv_heads, vocabulary = shape
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        eos_token_id=1,
        bos_token_id=None,
        **more,
    )


def make_model(folder: Path, size: str, vocabulary: int) -> tuple[Path, int, int]:
    """A random Qwen2 in `folder`; also the parameters of its body and of its head."""
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    hidden = SIZES[size][0]
    config = qwen2_config((*SIZES[size][:-1], vocabulary), tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    total = sum(p.numel() for p in model.parameters())
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    return folder, total - vocabulary * hidden, vocabulary * hidden


def build_worker(model: str, device: str, micro_pairs: int, one_unit: bool, of_engine: dict | None = None, **of_model):
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig

    from verl_aiops.trainers.config import PREFERENCE_MODEL_TYPE
    from verl_aiops.trainers.worker.objective import PreferenceObjective
    from verl_aiops.trainers.worker.run_ahead import PairTrainingWorker

    dtype = "fp32" if device == "cpu" else "bf16"
    worker = PairTrainingWorker(
        TrainingWorkerConfig(
            model_type=PREFERENCE_MODEL_TYPE,
            model_config=HFModelConfig(
                path=model,
                use_remove_padding=False,
                override_config={"attn_implementation": "sdpa"},
                **{"enable_gradient_checkpointing": False, **of_model},
            ),
            engine_config=FSDPEngineConfig(
                **{"strategy": "fsdp2" if device == "cpu" else "fsdp", **(of_engine or {})},
                **({"wrap_policy": {"disable": True}} if one_unit else {}),
                use_torch_compile=False,
                mixed_precision={"param_dtype": dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=micro_pairs,
                max_token_len_per_gpu=0,
                infer_micro_batch_size_per_gpu=micro_pairs,
                infer_max_token_len_per_gpu=0,
            ),
            optimizer_config=FSDPOptimizerConfig(
                lr=1e-6,
                weight_decay=0.0,
                clip_grad=1.0,
                total_training_steps=1000,
                override_optimizer_config={"fused": True},
            ),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    worker.set_loss_fn(PreferenceObjective(loss_settings={"beta": 0.1}))
    return worker


def batch(point: dict, backend: str, world: int, rank: int):
    """This rank's share of a step on random pairs."""
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.dpo.pairs import pair_batch

    g = torch.Generator().manual_seed(0)

    def ids(length):
        return torch.randint(2, point["vocabulary"], (length,), generator=g)

    examples, references = [], []
    for _ in range(point["pairs"]):
        answers = {f"{side}_ids": ids(point["answer"]) for side in ("chosen", "rejected")}
        masks = {f"{side}_mask": torch.ones(point["answer"]) for side in ("chosen", "rejected")}
        examples.append({"prompt_ids": ids(point["prompt"]), "weight": 1.0, **answers, **masks})
        references.append((torch.full((point["answer"],), -10.0),) * 2)
    whole = pair_batch(
        examples,
        mini_pairs=point["pairs"],
        reference=references,
        ranks=world,
        logprob_backend=backend,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=point["pairs"] // world,
        max_token_len_per_gpu=0,
        use_remove_padding=False,
    )
    part = tu.chunk_tensordict(whole, world)[rank]
    tu.assign_non_tensor(
        part, mini_batch_size=2 * point["pairs"], epochs=1, seed=0, dataloader_kwargs={"shuffle": False}
    )
    return part


def step_seconds(worker, device: str, parts: list) -> list[float]:
    """Seconds of each step, taken as the trainer takes them: one GPU is left to the next step before the present one's
    numbers are read."""
    times = [time.perf_counter()]
    if device == "cuda" and worker.engine.can_run_ahead:
        launched = None
        for part in parts:
            before, launched = launched, worker.launch(worker.as_one_mini_batch(part))
            if before is not None:
                worker.finish(before)
                times.append(time.perf_counter())
        worker.finish(launched)
        times.append(time.perf_counter())
    else:
        for part in parts:
            worker.train_batch(worker.as_one_mini_batch(part))
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
    return [later - earlier for earlier, later in zip(times, times[1:])]
