"""A reward model's first step on the preference engine and in TRL's RewardTrainer: the same tokens, loss, gradients."""

import numpy as np
import pytest
import torch
from tiny import make_tiny_classifier

pytest.importorskip("trl")

from preference_parts import PAIRS_FILE, _loss_and_gradients
from worker_harness import run_workers

from verl_aiops.trl.reward_data import read_reward_pairs

PAIRS = 8


@pytest.fixture(scope="module")
def classifier(tiny_model_dir, tmp_path_factory):
    return make_tiny_classifier(tmp_path_factory.mktemp("classifier"), tiny_model_dir, trunk=True, seed=3)


def _data(folder):
    from transformers import AutoTokenizer

    from verl_aiops.data import PreferenceDataset

    lengths = {"max_prompt_length": 2048, "max_response_length": 512, "limit": PAIRS, "progress": False}
    return PreferenceDataset(PAIRS_FILE, AutoTokenizer.from_pretrained(folder), scored=True, **lengths)


def _margins():
    return np.linspace(0, 1.5, PAIRS).round(3)


def _part(worker, folder, *, backend):
    from verl_aiops.trainers.dpo.pairs import pair_batch

    data = _data(folder)
    return pair_batch(
        [{**data[at], "margin": float(margin)} for at, margin in enumerate(_margins())],
        mini_pairs=PAIRS,
        scored=True,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=4,
        logprob_backend=backend,
        use_remove_padding=False,
    )


def _ours(worker, folder):
    from verl_aiops.trainers.rm.objective import RewardObjective

    objective = RewardObjective(score_margin=1.0, center=0.05)
    both = ("rows", "shared_prompt")
    return {
        name: _loss_and_gradients(worker, folder, part=_part, objective=objective, backend=name)[:2] for name in both
    }


def _trls(folder, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    # the template ends a conversation with a line break, so that no padding token stands there
    pairs = read_reward_pairs([PAIRS_FILE], tokenizer, 4096).part(range(PAIRS))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    columns = {"chosen_ids": pairs.chosen_ids, "rejected_ids": pairs.rejected_ids, "margin": _margins().tolist()}
    arguments = RewardConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PAIRS,
        center_rewards_coefficient=0.05,
        max_length=None,
        report_to="none",
    )
    dataset = Dataset.from_dict(columns)
    trainer = RewardTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    return pairs, loss.item(), {name: p.grad.numpy() for name, p in trainer.model.named_parameters()}


def test_the_first_loss_and_its_gradients_are_trls(classifier, tmp_path):
    pairs, loss, gradients = _trls(classifier, tmp_path)
    data = _data(classifier)
    for at in range(PAIRS):
        prompt = data[at]["prompt_ids"].tolist()
        assert prompt + data[at]["chosen_ids"].tolist() == pairs.chosen_ids[at]
        assert prompt + data[at]["rejected_ids"].tolist() == pairs.rejected_ids[at]
    (ours,) = run_workers(classifier, 1, _ours, classifier, model_type="reward_model")
    for backend, (our_loss, our_gradients) in ours.items():
        assert our_loss == pytest.approx(loss, abs=1e-5), backend
        assert our_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            error = abs(our_gradients[name] - gradient).max()
            assert error < 1e-5 + 1e-4 * abs(gradient).max(), (backend, name)
