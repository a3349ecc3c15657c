"""Workers that have a sequence together (Ulysses): loss and gradients are those of workers with whole rows."""

import contextlib
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from preference_parts import PAIRS, _group_part, _loss_and_gradients, _part, _single_part
from rl_parts import actor_config, batch_of, critic_config, engine_of, loss_and_gradients, outputs, rows_of
from tiny import make_tiny_model
from worker_harness import build_worker, run_ranks

ROWS = rows_of(prompts=4)
# three tokens that the model sees, so that the last stretch has padding, and no label in the first
SHORT = [(np.array([5, 8, 7]), np.array([answer]), np.ones(1)) for answer in (6, 9, 11, 12)]
SPLITS = {
    "pairs, under a budget": (_part, {"micro_pairs": None, "dynamic_tokens": 3000}),
    "groups": (_group_part, {"micro_pairs": PAIRS // 2}),
    "answers that estimate the KL": (_single_part, {"micro": 2, "settings": {"loss_type": ["sigmoid", "kto"]}}),
}


def _preferences(model_dir, workers, ulysses, **options):
    worker = build_worker(model_dir, ulysses=ulysses, gradient_checkpointing=True, **options)
    # those that have different rows
    sharers = SimpleNamespace(world_size=workers // ulysses, rank=worker.engine.get_data_parallel_rank())
    return {
        name: _loss_and_gradients(
            worker,
            model_dir,
            part=lambda _, folder, part=part, **split: part(sharers, folder, **split),
            backend="shared_prompt",
            **split,
        )
        for name, (part, split) in SPLITS.items()
    }


def _policy_and_critic(model_dir, workers, ulysses):
    """{model: {rows: (numbers of this worker's rows, loss, gradients)}}"""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss, value_loss

    losses = {
        "shared_prompt_language_model": ppo_loss,
        "shared_prompt_value_model": value_loss,
    }
    found = {}
    for model_type, loss in losses.items():
        torch.manual_seed(0)  # a critic's head begins at random
        worker = engine_of(model_dir, model_type, ulysses=ulysses)
        if loss is ppo_loss:
            config = actor_config("actor_rollout_ref.actor.entropy_coeff=0.1")
        else:
            config = critic_config(model_dir)
        found[model_type] = {}
        for name, rows in (("groups", ROWS), ("three tokens", SHORT)):
            settings = {"micro_batch_size_per_gpu": 4, "temperature": 0.7, "calculate_entropy": loss is ppo_loss}
            of_rank = np.array_split(range(len(rows)), workers // ulysses)[worker.engine.get_data_parallel_rank()]
            data = tu.index_select_tensor_dict(batch_of(rows, **settings), of_rank.tolist())
            numbers = outputs(worker, data.copy())
            part = loss_and_gradients(worker, data, functools.partial(loss, config))
            found[model_type][name] = numbers, *part[:2]
    return found


class _Stream:
    """Of a device that does one thing after another, which a CPU is."""

    def wait_stream(self, other):
        pass


def _offloads_on_cpu():
    """verl moves activations on streams of a GPU, into pinned memory; neither is there."""
    from verl.utils import activation_offload
    from verl.utils.device import get_torch_device

    device, handler = get_torch_device(), activation_offload.SynchronizedGroupOffloadHandler
    device.Stream, device.current_stream, device.stream = _Stream, _Stream, lambda _: contextlib.nullcontext()
    handler.offload.__defaults__ = (False,)


def _on_workers(model_dir, workers):
    torch.set_num_threads(1)
    found = [
        (_preferences(model_dir, workers, ulysses), _policy_and_critic(model_dir, workers, ulysses))
        for ulysses in (1, 2)
    ]
    _offloads_on_cpu()
    return *found, _preferences(model_dir, workers, 2, activation_offload=True)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request, tmp_path_factory):
    """[(numbers without, numbers with, numbers with activations kept on the host), ...] by worker."""
    # verl moves activations of three layers and more
    folder = make_tiny_model(tmp_path_factory.mktemp("three_layers"), layers=3)
    return run_ranks(request.param, _on_workers, str(folder), request.param)


def _same(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        # the round-off of sums in another order; measured: 1e-6
        assert np.abs(gradients[name] - gradient).max() <= 2e-5 * np.abs(gradient).max() + 1e-9, name


def test_preference_losses_and_gradients_are_those_without(found):
    for (alone, _), (together, _), _ in found:
        assert alone.keys() == together.keys()
        for name, (loss, gradients, metrics) in alone.items():
            assert together[name][0] == pytest.approx(loss, rel=1e-5), name
            _same(together[name][1], gradients)
            # how much is shared depends on what fits into a micro-batch
            for metric, value in ((m, v) for m, v in metrics.items() if not m.startswith("perf/")):
                assert together[name][2][metric] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, metric)


def test_policies_and_critics_are_those_without(found):
    for (_, alone), (_, together), _ in found:
        for model_type, by_rows in alone.items():
            for name, (_, loss, gradients) in by_rows.items():
                assert together[model_type][name][1] == pytest.approx(loss, rel=1e-5), (model_type, name)
                _same(together[model_type][name][2], gradients)


def test_one_of_the_workers_gives_the_numbers_of_every_row(found):
    for model_type, by_rows in found[0][0][1].items():
        for name, rows in (("groups", ROWS), ("three tokens", SHORT)):
            for column in by_rows[name][0]:
                alone, together = (
                    [row for of_rank in found if (part := of_rank[at][1][model_type][name][0]) for row in part[column]]
                    for at in (0, 1)
                )
                assert len(alone) == len(together) == len(rows)
                for (_, _, mask), row, other in zip(rows, alone, together, strict=True):
                    np.testing.assert_allclose(other[mask > 0], row[mask > 0], rtol=0, atol=2e-5)


def test_activations_on_the_host_change_nothing(found):
    for _, (together, _), offloaded in found:
        for name, (loss, gradients, _) in together.items():
            assert offloaded[name][0] == loss, name
            _same(offloaded[name][1], gradients)
