"""Adapters on a base in four bits, on real worker processes: pairs and reward models, checkpoints and models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from preference_parts import _list_part, _loss_and_gradients, _part, _single_part
from worker_harness import run_workers

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install verl-aiops[qlora]")

FOUR_BITS = {"lora_rank": 4, "base_format": "nf4"}
LAYER = "model.layers.0.self_attn.q_proj"


def _adapters(engine):
    return {name: p.detach().clone() for name, p in engine.module.named_parameters() if p.requires_grad}


def _move(engine):
    """Adapters that are no longer the ones a run starts from."""
    with torch.no_grad():
        for number, parameter in enumerate(p for p in engine.module.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.05)


def _scored(worker, model_dir, backend, without_adapters):
    from verl.utils import tensordict_utils as tu

    part = _part(worker, model_dir, micro_pairs=2, reference=False, backend=backend)
    tu.assign_non_tensor(part, compute_loss=False, no_lora_adapter=without_adapters, global_token_num=None)
    return worker.infer_batch(part)["answer_log_probs"].values().float().numpy()


def _trained(worker, model_dir):
    """What the engine is, and what both backends make of its pairs."""
    engine = worker.engine
    kinds = {name: type(module).__name__ for name, module in engine.module.named_modules() if "base_layer" in name}
    new, start, reference, learned = _adapters(engine), {}, {}, {}
    # a run has one backend: what a model's attention is left as by the second is not the first's
    for backend in ("rows", "shared_prompt"):
        start[backend], reference[backend] = (_scored(worker, model_dir, backend, off) for off in (False, True))
        if backend == "rows":
            # in training, whose products are those of the gradients
            with engine.train_mode(), torch.no_grad():
                training = _scored_in_place(worker, model_dir)
        _move(engine)
        learned[backend] = _loss_and_gradients(worker, model_dir, micro_pairs=2, backend=backend)
        with torch.no_grad():
            for name, parameter in engine.module.named_parameters():
                if name in new:
                    parameter.copy_(new[name])
    return kinds, {str(p.dtype) for p in _adapters(engine).values()}, start, reference, training, learned


def _scored_in_place(worker, model_dir):
    """Log-probs as a step computes them: in training mode."""
    from verl_aiops.trainers.logprobs import LOGPROB_BACKENDS

    part = _part(worker, model_dir, micro_pairs=8, reference=False)
    assert worker.engine.module.training
    return LOGPROB_BACKENDS["rows"](worker.engine.module, part, packed=False, device="cpu").values().numpy()


def test_both_backends_train_the_same_adapters_on_a_base_in_four_bits(tiny_model_dir):
    ((kinds, dtypes, start, reference, training, learned),) = run_workers(
        tiny_model_dir, 1, _trained, str(tiny_model_dir), **FOUR_BITS
    )
    assert set(kinds.values()) == {"Linear4bit"} and dtypes == {"torch.float32"}
    for backend in ("rows", "shared_prompt"):
        # new adapters change nothing: the policy starts as its reference, to the last bit
        np.testing.assert_array_equal(start[backend], reference[backend])
    np.testing.assert_allclose(reference["shared_prompt"], reference["rows"], rtol=0, atol=2e-5)
    # and computes in training what it was scored with: no other kernel where there are no gradients
    np.testing.assert_allclose(training, reference["rows"], rtol=0, atol=2e-5)
    (loss, gradients, metrics), (shared_loss, shared_gradients, shared_metrics) = learned.values()
    assert shared_loss == pytest.approx(loss, abs=1e-5)
    assert {name.rsplit(".", 3)[1] for name in gradients} == {"lora_A", "lora_B"}
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 0
        gap = np.abs(shared_gradients[name] - gradient).max()
        assert gap <= 2e-5 * np.abs(gradient).max() + 1e-8, name
    assert shared_metrics["rewards/margins"] == pytest.approx(metrics["rewards/margins"], abs=1e-4)


OTHERS = {
    "answers with a yes or a no, and pairs": (
        _single_part,
        {"micro": 2, "settings": {"loss_type": ["sigmoid", "kto"]}},
    ),
    "ranked lists": (_list_part, {"settings": {"loss_type": "plackett_luce", "beta": 0.3}}),
}


@pytest.fixture(scope="module")
def adapter(tiny_model_dir, tmp_path_factory):
    """A folder of PEFT's, trained as far as that its answers are others than the base's."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            made = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data.copy_(made * 0.05)
    model.save_pretrained(folder)
    return folder


def _others(worker, model_dir, adapter):
    """Of a run that starts from an adapter: its adapters, what it scores, and what it makes of other examples."""
    from safetensors.torch import load_file

    engine = worker.engine
    saved = load_file(f"{adapter}/adapter_model.safetensors")
    for name, parameter in _adapters(engine).items():
        torch.testing.assert_close(parameter, saved[name.replace(".default", "")], rtol=0, atol=0)
    kinds = {type(module).__name__ for name, module in engine.module.named_modules() if "base_layer" in name}
    start, base = (_scored(worker, model_dir, "rows", off) for off in (False, True))
    # the reference is what the run starts from, adapters and all
    engine.sync_reference(1.0)
    learned = {}
    for name, (part, how) in OTHERS.items():
        for backend in ("rows", "shared_prompt"):
            learned[name, backend] = _loss_and_gradients(worker, model_dir, part=part, backend=backend, **how)
    _move(engine)
    with engine.reference_weights():
        kept = _scored(worker, model_dir, "rows", False)
    moved = _scored(worker, model_dir, "rows", False)
    return kinds, start, base, kept, moved, learned


def _by_hand(model_dir, adapter):
    """The same by PEFT on transformers' model, whose layers are put in four bits one by one: no engine of verl's."""
    from peft import PeftModel
    from preference_parts import _dataset
    from transformers import AutoModelForCausalLM

    from verl_aiops.kernels.four_bits import in_four_bits

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa")
    assert in_four_bits(model, torch.float32, "cpu") == []
    model = PeftModel.from_pretrained(model, adapter).eval()
    sums = []
    for item in _dataset(model_dir):
        for side in ("chosen", "rejected"):
            answer = item[f"{side}_ids"]
            ids = torch.cat([item["prompt_ids"], answer]).unsqueeze(0)
            with torch.no_grad():
                logps = model(ids).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            sums.append(float(logps.gather(1, answer.unsqueeze(1)).sum()))
    return sorted(sums)


def test_kto_lists_and_a_run_from_an_adapter_take_the_same_path_on_a_base_in_four_bits(tiny_model_dir, adapter):
    ((kinds, start, base, kept, moved, learned),) = run_workers(
        tiny_model_dir, 1, _others, str(tiny_model_dir), str(adapter), adapter=str(adapter), **FOUR_BITS
    )
    assert kinds == {"Linear4bit"}
    assert np.abs(start - base).max() > 1e-2 and np.abs(moved - start).max() > 1e-2
    np.testing.assert_array_equal(kept, start)
    assert float(start.sum()) == pytest.approx(sum(_by_hand(tiny_model_dir, adapter)), rel=1e-5)
    for name in OTHERS:
        (loss, gradients, metrics), (shared_loss, shared_gradients, shared_metrics) = (
            learned[name, backend] for backend in ("rows", "shared_prompt")
        )
        assert np.isfinite(loss) and shared_loss == pytest.approx(loss, abs=1e-5), name
        assert {one.rsplit(".", 3)[1] for one in gradients} == {"lora_A", "lora_B"}
        for one, gradient in gradients.items():
            assert np.abs(gradient).max() > 0, (name, one)
            gap = np.abs(shared_gradients[one] - gradient).max()
            assert gap <= 2e-5 * np.abs(gradient).max() + 1e-7, (name, one)
        assert shared_metrics["rewards/chosen"] == pytest.approx(metrics["rewards/chosen"], abs=1e-4), name


def _in_half(worker, model_dir):
    """As on a GPU: what stays whole is bfloat16, and so are products."""
    start, reference = (_scored(worker, model_dir, "shared_prompt", off) for off in (False, True))
    model = worker.engine.module.get_base_model()
    whole = {str(p.dtype) for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    _move(worker.engine)
    _, gradients, _ = _loss_and_gradients(worker, model_dir, micro_pairs=2, backend="shared_prompt")
    return whole, {str(p.dtype) for p in _adapters(worker.engine).values()}, start, reference, gradients


def test_in_half_precision_adapters_stay_float32(tiny_model_dir):
    half = {"param_dtype": "bf16", "model_dtype": "bf16", "gradient_checkpointing": True}
    ((whole, dtypes, start, reference, gradients),) = run_workers(
        tiny_model_dir, 1, _in_half, str(tiny_model_dir), **half, **FOUR_BITS
    )
    assert whole == {"torch.bfloat16"} and dtypes == {"torch.float32"}
    np.testing.assert_array_equal(start, reference)
    assert all(np.isfinite(g).all() and g.dtype == np.float32 and np.abs(g).max() > 0 for g in gradients.values())


def _step(worker, model_dir):
    from verl_aiops.trainers.worker.objective import PreferenceObjective

    worker.set_loss_fn(PreferenceObjective(loss_settings={"beta": 0.1}))
    with worker.engine.train_mode():
        from verl.utils import tensordict_utils as tu

        worker.engine.optimizer_zero_grad()
        part = _part(worker, model_dir, micro_pairs=2)
        tu.assign_non_tensor(part, global_token_num=None)
        worker.engine.forward_backward_batch(part, worker.loss_fn, forward_only=False)
        worker.engine.optimizer_step()


def _saved(worker, model_dir, folder):
    """A step, a checkpoint, a second step; the model at once and from the checkpoint."""
    from verl_aiops.models.folders import merge_checkpoint

    engine = worker.engine
    _step(worker, model_dir)
    first = _adapters(engine)
    engine.save_checkpoint(f"{folder}/actor", global_step=1)
    Path(folder, "ours").mkdir()
    engine.write_model(f"{folder}/ours")
    merge_checkpoint(f"{folder}/actor", f"{folder}/merged", trust_remote_code=False)
    base = engine.module.get_base_model().get_submodule(LAYER).base_layer
    kept = base.weight.data.clone()
    _step(worker, model_dir)
    assert torch.equal(kept, base.weight.data)
    second = _adapters(engine)
    # as the next process would begin: with adapters of its own
    _move(engine)
    engine.load_checkpoint(f"{folder}/actor")
    back = _adapters(engine)
    assert all(torch.equal(back[name], first[name]) for name in first)
    assert torch.equal(kept, base.weight.data)
    _step(worker, model_dir)
    again = _adapters(engine)
    for name in second:
        torch.testing.assert_close(again[name], second[name], rtol=0, atol=1e-7)
    layer = engine.module.get_base_model().get_submodule(LAYER)
    from bitsandbytes.functional import dequantize_4bit

    delta = layer.scaling["default"] * first_of(first, "lora_B") @ first_of(first, "lora_A")
    return (dequantize_4bit(base.weight.data, base.weight.quant_state) + delta).numpy(), float(delta.abs().max())


def first_of(adapters, matrix):
    return next(p for name, p in adapters.items() if f"{LAYER}.{matrix}." in name)


def test_checkpoints_and_models_of_a_base_in_four_bits(tiny_model_dir, tmp_path):
    from safetensors.torch import load_file

    ((expected, moved),) = run_workers(tiny_model_dir, 1, _saved, str(tiny_model_dir), str(tmp_path), **FOUR_BITS)
    ours, merged = (load_file(tmp_path / way / "model.safetensors") for way in ("ours", "merged"))
    assert ours.keys() == merged.keys() and all(torch.equal(ours[name], merged[name]) for name in ours)
    # what was trained on, made whole, with the adapters: to bfloat16, in which models are written
    weight = ours[f"{LAYER}.weight"].float().numpy()
    assert moved > 1e-4
    np.testing.assert_allclose(weight, expected, rtol=2**-7, atol=1e-4)
    # and not the base that the run was given
    (given,) = Path(tiny_model_dir).glob("*.safetensors")
    assert np.abs(load_file(given)[f"{LAYER}.weight"].float().numpy() - weight).max() > 1e-3
    assert "quantization_config" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (tmp_path / "ours" / "lora_adapter" / "adapter_model.safetensors").is_file()
