"""Pairs of whole investigations through offline DPO: what is trained on, and that both backends make the same of it."""

import numpy as np
import pytest
import torch
from investigation_parts import Scripted, call, right_of
from logprob_pairs import assert_same
from preference_parts import _loss_and_gradients
from worker_harness import run_workers

SETTINGS = {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Right investigations against wrong ones, as `build-prefs --from-generations` makes them."""
    from verl_aiops.cli.main import main
    from verl_aiops.evaluation.investigation.evaluate import evaluate_investigations
    from verl_aiops.evaluation.investigation.questions import read_case_questions

    folder = tmp_path_factory.mktemp("investigations")
    rows = folder / "rl.parquet"
    build = ["build-rl", "--task", "investigation", "--out", str(rows), "--num-incidents", "4", "--val-share", "0"]
    assert main([*build, "--answer-chars", "200", "--difficulty", "easy", "--topologies", "shop"]) == 0

    class Mixed(Scripted):
        def investigate(self, jobs, done):
            for job in jobs:
                self.scripts = (
                    [call("list_services"), call("list_changes"), right_of(job.question)],
                    [call("list_services"), '{"root_causes": [{"component": "nobody"}]}'],
                )
                super().investigate([job], done)

    settings = {"task": "investigation", "data": str(rows), "limit": None}
    evaluate_investigations(read_case_questions(str(rows)), Mixed(), folder / "own", settings, {}, samples=2)
    out = folder / "pairs.parquet"
    command = ["build-prefs", "--from-generations", str(folder / "own"), "--out", str(out), "--val-share", "0"]
    assert main(command) == 0
    return str(out)


def _dataset(file, model_dir):
    from transformers import AutoTokenizer

    from verl_aiops.data import PreferenceDataset

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return PreferenceDataset(file, tokenizer, max_prompt_length=2500, max_response_length=1500, progress=False)


def test_what_the_tools_returned_is_read_and_not_trained_on(pairs, tokenizer, tiny_model_dir):
    dataset = _dataset(pairs, tiny_model_dir)
    assert len(dataset) == 4
    for at in range(4):
        ids, mask = dataset[at]["chosen_ids"], dataset[at]["chosen_mask"].bool()
        trained, read = tokenizer.decode(ids[mask]), tokenizer.decode(ids[~mask])
        assert trained.count("<tool_call>") == 2 and '"root_causes"' in trained and "services: " not in trained
        assert "services: " in read and "changes" in read and "<tool_call>" not in read


def test_log_probs_of_whole_investigations_share_their_prompt(pairs, tiny_model_dir):
    from transformers import AutoModelForCausalLM

    dataset = _dataset(pairs, tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert_same(model, [dataset[at] for at in range(2)])


def _part(worker, model_dir, *, file, backend):
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.dpo.pairs import pair_batch

    dataset = _dataset(file, model_dir)
    examples = [dataset[at] for at in range(len(dataset))]
    reference = [
        tuple(np.full(len(e[f"{side}_ids"]), -6.0, np.float32) for side in ("chosen", "rejected")) for e in examples
    ]
    batch = pair_batch(
        examples,
        mini_pairs=len(examples),
        reference=reference,
        ranks=1,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=2,
        logprob_backend=backend,
        use_remove_padding=False,
    )
    return tu.chunk_tensordict(batch, 1)[0]


def _losses(worker, model_dir, file):
    given = {"part": _part, "settings": SETTINGS, "file": file}
    return {
        backend: _loss_and_gradients(worker, model_dir, backend=backend, **given)
        for backend in ("rows", "shared_prompt")
    }


@pytest.mark.slow
def test_both_backends_train_alike_on_whole_investigations(pairs, tiny_model_dir):
    (found,) = run_workers(tiny_model_dir, 1, _losses, tiny_model_dir, pairs)
    (rows, gradients, metrics), (shared, others, _) = found["rows"], found["shared_prompt"]
    assert rows == pytest.approx(shared, rel=1e-5) and np.isfinite(rows)
    assert all(np.allclose(gradients[name], others[name], rtol=1e-3, atol=1e-6) for name in gradients)
    assert any(np.abs(gradient).max() > 1e-6 for gradient in gradients.values())
    assert metrics["logps/chosen"] < 0
