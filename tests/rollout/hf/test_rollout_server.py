"""The embedded rollout's server: batching, sleep, abort, limits; without Ray, its methods are plain coroutines."""

import asyncio
import time
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from prepared import composed

from verl_aiops.rollout.hf.batcher import Batcher
from verl_aiops.rollout.hf.engine import Request, Sampled, Sampling
from verl_aiops.rollout.hf.limits import unsupported
from verl_aiops.rollout.hf.server import HFServer


class Recorder:
    """Stands for the engine: remembers its batches, answers with the prompt, as slowly as asked."""

    def __init__(self, seconds=0.0):
        self.batches, self.seconds = [], seconds

    def run(self, requests, abort):
        self.batches.append([r.prompt_ids for r in requests])
        aborted = abort.wait(self.seconds)
        if any(r.prompt_ids == (666,) for r in requests):
            raise FloatingPointError("broken")
        return [Sampled(list(r.prompt_ids), [0.0] * len(r.prompt_ids), aborted=aborted) for r in requests]


def request(*prompt):
    return Request(prompt, Sampling(max_tokens=4))


def batcher(recorder, max_seqs=8, max_tokens=1000):
    return Batcher(recorder.run, max_seqs, max_tokens, aborted=lambda: Sampled([], [], aborted=True))


def test_concurrent_requests_share_a_batch():
    async def go():
        recorder = Recorder()
        batches = batcher(recorder, max_seqs=3)
        answers = await asyncio.gather(*[batches.submit(request(n)) for n in range(7)])
        assert [a.token_ids for a in answers] == [[n] for n in range(7)]
        assert [len(batch) for batch in recorder.batches] == [3, 3, 1]

    asyncio.run(go())


def test_requests_that_come_one_after_another_share_it_too():
    async def go():
        recorder = Recorder()
        batches = batcher(recorder)

        async def late(n):
            await asyncio.sleep(0.01 * n)
            return await batches.submit(request(n))

        await asyncio.gather(*[late(n) for n in range(6)])
        assert len(recorder.batches) == 1

    asyncio.run(go())


def test_prompt_tokens_bound_a_batch():
    """Equal prompts are computed once, so they count once; a prompt that is too long alone still runs."""

    async def go():
        recorder = Recorder()
        batches = batcher(recorder, max_tokens=10)
        prompts = [(1, 2, 3, 4)] * 4 + [(5, 6, 7, 8), (9,) * 30, (1,)]
        await asyncio.gather(*[batches.submit(request(*p)) for p in prompts])
        assert [len(batch) for batch in recorder.batches] == [5, 1, 1]

    asyncio.run(go())


def test_a_failed_batch_fails_its_requests_only():
    async def go():
        recorder = Recorder()
        batches = batcher(recorder, max_seqs=1)
        answers = await asyncio.gather(*[batches.submit(request(n)) for n in (1, 666, 2)], return_exceptions=True)
        assert [type(a) for a in answers] == [Sampled, FloatingPointError, Sampled]

    asyncio.run(go())


def test_abort_ends_running_and_waiting_and_holds_what_comes():
    async def go():
        recorder = Recorder(seconds=30)
        batches = batcher(recorder, max_seqs=1)
        running, waiting = (asyncio.create_task(batches.submit(request(n))) for n in (1, 2))
        while not recorder.batches:
            await asyncio.sleep(0.01)
        started = time.monotonic()
        await batches.abort()
        assert (await running).aborted and (await waiting) == Sampled([], [], aborted=True)
        assert time.monotonic() - started < 5
        recorder.seconds = 0
        held = asyncio.create_task(batches.submit(request(3)))
        await asyncio.sleep(0.3)
        assert not held.done()
        batches.resume()
        assert (await held).token_ids == [3]
        await batches.abort(reject=True)
        with pytest.raises(RuntimeError, match="takes no requests"):
            await batches.submit(request(4))

    asyncio.run(go())


def test_pause_lets_the_batch_finish():
    async def go():
        recorder = Recorder(seconds=0.3)
        batches = batcher(recorder)
        running = asyncio.create_task(batches.submit(request(1)))
        await asyncio.sleep(0.01)
        await batches.pause()
        assert running.done() or (await running).token_ids == [1]
        held = asyncio.create_task(batches.submit(request(2)))
        await asyncio.sleep(0.2)
        assert not held.done() and len(recorder.batches) == 1
        batches.resume()
        await held

    asyncio.run(go())


# --- the server -------------------------------------------------------------------------------------------------------


def configuration(**changes):
    """verl's own rollout configuration, as the trainer hands it over."""
    config = composed("+verl_aiops=[grpo_mturn,cpu]")
    rollout = config.actor_rollout_ref.rollout
    for key, value in changes.items():
        OmegaConf.update(rollout, key, value, force_add=True)
    OmegaConf.resolve(rollout)
    return rollout, config.actor_rollout_ref.model


@pytest.fixture
def server(tiny_model_dir, tokenizer, monkeypatch):
    threads = torch.get_num_threads()

    def make(from_disk=True, **changes):
        from verl.utils.config import omega_conf_to_dataclass

        rollout, _ = configuration(prompt_length=40, response_length=8, **changes)
        model = SimpleNamespace(local_path=str(tiny_model_dir), trust_remote_code=False, tokenizer=tokenizer)
        return HFServer(omega_conf_to_dataclass(rollout), model, weights_from_disk=from_disk)

    yield make
    torch.set_num_threads(threads)


def ask(server, prompt=(5, 6, 7), **sampling):
    return server.generate(list(prompt), {"temperature": 1.0, "logprobs": True, **sampling}, request_id="r")


def test_server_generates(server):
    async def go():
        running = server()
        await running.set_global_steps(5)
        output = await ask(running)
        assert 1 <= len(output.token_ids) <= 8 and len(output.log_probs) == len(output.token_ids)
        assert output.extra_fields["global_steps"] == 5 and output.stop_reason == "completed"
        assert (await ask(running, logprobs=False)).log_probs is None
        # the last token of the context is the most that a long prompt leaves
        assert len((await ask(running, prompt=range(3, 50))).token_ids) == 1
        for refused, message in (
            (ask(running, prompt=range(3, 51)), "a prompt of 48 tokens"),
            (ask(running, prompt=()), "a prompt of 0 tokens"),
            (running.generate([5], {}, "r", image_data=["x"]), "image_data is not supported"),
            (running.generate([5], {}, "r", lora_path="x"), "lora_path is not supported"),
            (ask(running, best_of=3), "best_of is not supported"),
        ):
            with pytest.raises(ValueError, match=message):
                await refused

    asyncio.run(go())


def test_server_waits_for_weights_and_sleeps(server):
    """It answers only once all weights have come, and not while it sleeps."""

    async def go():
        trained, empty = server(), server(from_disk=False)
        with pytest.raises(RuntimeError, match="has not sent 20 weights"):
            await ask(empty)
        await empty.load_weights(trained.engine.model.state_dict())
        greedy = {"temperature": 0}
        assert (await ask(empty, **greedy)).token_ids == (await ask(trained, **greedy)).token_ids
        await empty.sleep()
        held = asyncio.create_task(ask(empty))
        await asyncio.sleep(0.3)
        assert not held.done()
        await empty.wake_up()
        assert (await held).token_ids
        awake = server(free_cache_engine=False)
        await awake.sleep()
        assert (await asyncio.wait_for(ask(awake), 20)).token_ids

    asyncio.run(go())


@pytest.mark.parametrize(
    "changes, model, named",
    [
        ({"tensor_model_parallel_size": 2}, {}, "tensor_model_parallel_size=2"),
        ({"data_parallel_size": 2}, {}, "data_parallel_size=2"),
        ({"quantization": "fp8"}, {}, "quantization=fp8"),
        ({"disaggregation.enabled": True}, {}, "disaggregation"),
        ({"enable_rollout_routing_replay": True}, {}, "enable_rollout_routing_replay"),
        ({"checkpoint_engine.backend": "nccl"}, {}, "backend=nccl"),
        ({"prometheus.enable": True}, {}, "prometheus"),
        ({"custom.aiops_mturn.json_schema": True}, {}, "json_schema"),
        ({}, {"lora_rank": 8}, "lora.merge=True"),
    ],
)
def test_limits_are_named(changes, model, named):
    rollout, settings = configuration(**changes)
    for key, value in model.items():
        OmegaConf.update(settings, key, value, force_add=True)
    assert [sentence for sentence in unsupported(rollout, settings) if named in sentence]
    rollout, settings = configuration()
    assert unsupported(rollout, settings) == []
