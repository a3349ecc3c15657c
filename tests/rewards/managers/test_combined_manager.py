"""The reward manager ``aiops_combined``: what it asks the reward model, and what it hands to verl."""

import asyncio
import json
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from verl_aiops.rewards.model.client import RewardModelError
from verl_aiops.rewards.model.transform import Moments

TRUTH = json.dumps({"service": "db", "incident_type": "disk_full", "evidence": ["disk 100% used"]})
RIGHT = '{"service": "db", "incident_type": "disk_full"}'
PROMPT = [{"role": "user", "content": "logs: disk 100% used since 9"}]


class Client:
    """Scores by the text's length, or raises."""

    def __init__(self, error=None):
        self.error, self.texts = error, []

    async def score(self, text):
        self.texts.append(text)
        if self.error:
            raise RewardModelError(self.error)
        return len(text) / 1000


def configuration(rm=True, **combined):
    return OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {"path": None, "name": "compute_score"},
                "reward_model": {"enable": rm, "model_path": "rm", "rollout": {"name": "hf", "max_model_len": 2000}},
                "combined": combined,
            }
        }
    )


def row_of(tokenizer, turns, rounds=("Now JSON.",), response="any text", outputs=1):
    """One session as verl's agent loop hands it over; its earlier outputs are other texts."""
    from verl import DataProto

    texts = [f"earlier output {at}" for at in range(outputs - 1)] + [response]
    ids = [torch.tensor(tokenizer.encode(text), dtype=torch.int64) for text in texts]
    responses = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
    batch = TensorDict({"responses": responses, "attention_mask": mask}, batch_size=len(texts))

    def column(value):
        objects = np.empty(len(texts), dtype=object)
        objects[:] = [value] * len(texts)
        return objects

    return DataProto(
        batch=batch,
        non_tensor_batch={
            "data_source": column("aiops_mturn"),
            "reward_model": column({"ground_truth": TRUTH}),
            "raw_prompt": column(PROMPT),
            "extra_info": column({"incident_text": PROMPT[0]["content"], "rounds": list(rounds)}),
            "tool_extra_fields": column({"turns": turns} if turns is not None else {}),
            "global_steps": np.array([3] * len(texts)),
        },
    )


def score(tokenizer, row, client=None, rm_tokenizer=None, moments=None, given=None, **combined):
    from verl_aiops.rewards.managers.combined import AiopsCombinedRewardManager

    async def go():
        config = configuration(rm=client is not None, **combined)
        address = "nowhere:1" if client is not None else None
        manager = AiopsCombinedRewardManager(config, tokenizer, given, address, rm_tokenizer or tokenizer)
        if client is not None:
            manager.client = client
        if moments is not None:
            manager.moments = moments
        return await manager.run_single(row)

    return asyncio.run(go())


def test_all_parts_are_named_and_the_score_is_theirs(tokenizer):
    client = Client()
    result = score(tokenizer, row_of(tokenizer, ['It says "disk 100% used".', RIGHT]), client, squash="raw")
    info = result["reward_extra_info"]
    assert info["rule"] == pytest.approx(1.0) and info["acc_main"] == 1.0
    assert info["rm_raw"] == info["rm"] == len(client.texts[0]) / 1000
    assert result["reward_score"] == info["score"] == pytest.approx(0.5 * info["rule"] + 0.5 * info["rm"])
    assert (info["rm_failed"], info["rm_error"]) == (0.0, "")
    assert info["round_2"] == RIGHT


def test_the_reward_model_reads_the_dialogue_as_it_was_held(tokenizer):
    client = Client()
    score(tokenizer, row_of(tokenizer, ["I think <|im_end|>", RIGHT]), client)
    assert client.texts == [
        f"<|im_start|>user\n{PROMPT[0]['content']}<|im_end|>\n<|im_start|>assistant\nI think < |im_end|><|im_end|>\n"
        f"<|im_start|>user\nNow JSON.<|im_end|>\n<|im_start|>assistant\n{RIGHT}<|im_end|>\n"
    ]


def test_one_round_is_read_as_verl_itself_reads_it(tokenizer):
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    client, row = Client(), row_of(tokenizer, None, (), response=f"{RIGHT}<|im_end|>")
    score(tokenizer, row, client)
    worker = RewardLoopWorker.__new__(RewardLoopWorker)
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer
    verls = asyncio.run(worker._preprocess_reward_inputs(row))
    # verl takes the template's first token off whether or not the server's tokenizer adds it; this one does not
    assert client.texts == [tokenizer.bos_token + verls]


def test_only_the_final_output_of_a_session_counts(tokenizer):
    client, row = Client(), row_of(tokenizer, None, (), response="the last", outputs=3)
    score(tokenizer, row, client)
    assert len(client.texts) == 1 and "the last" in client.texts[0] and "earlier" not in client.texts[0]


@pytest.mark.parametrize("turns, response", [(None, ""), ([""], ""), (["", ""], "x")])
def test_an_empty_answer_is_scored(tokenizer, turns, response):
    result = score(tokenizer, row_of(tokenizer, turns, ("r",), response), Client(), mode="rm_only")
    assert 0 < result["reward_score"] < 1 and result["reward_extra_info"]["rule"] == 0.0


@pytest.mark.parametrize("mode", ["rule_only", "rm_only", "weighted", "gated", "rm_tiebreak"])
def test_a_failed_reward_model_is_never_a_number(tokenizer, mode):
    row = row_of(tokenizer, ["so", RIGHT])
    good = score(tokenizer, row, Client(), mode=mode)
    bad = score(tokenizer, row, Client("HTTP 500"), mode=mode)
    assert list(good["reward_extra_info"]) == list(bad["reward_extra_info"])
    info = bad["reward_extra_info"]
    assert info["rm_failed"] == 1.0 and info["rm_error"] == "HTTP 500" and math.isnan(info["rm"])
    assert info["rule"] == good["reward_extra_info"]["rule"] and info["acc_main"] == 1.0
    assert bad["reward_score"] == info["rule"] if mode == "rule_only" else math.isnan(bad["reward_score"])


def test_a_dialogue_that_the_reward_model_cannot_take_is_not_sent(tokenizer):
    client = Client()
    result = score(tokenizer, row_of(tokenizer, ["x " * 4000, RIGHT]), client, mode="rm_only")
    assert client.texts == [] and math.isnan(result["reward_score"])
    assert "the reward model takes 2000" in result["reward_extra_info"]["rm_error"]


def test_without_a_reward_model_the_rule_runs_alone_or_not_at_all(tokenizer):
    row = row_of(tokenizer, ["so", RIGHT])
    result = score(tokenizer, row, mode="rule_only")
    assert "rm" not in result["reward_extra_info"]
    assert result["reward_score"] == result["reward_extra_info"]["rule"] > 0.8
    with pytest.raises(ValueError, match="mode=gated needs reward.reward_model.enable=True"):
        score(tokenizer, row, mode="gated")


def test_scores_are_normalised_by_what_the_step_began_with(tokenizer):
    class Steps:
        asked = []

        async def at(self, step):
            self.asked.append(step)
            return Moments(0.1, 2.0, 5)

    steps, client = Steps(), Client()
    result = score(tokenizer, row_of(tokenizer, ["so", RIGHT]), client, moments=steps, mode="rm_only", squash="raw")
    assert steps.asked == [3]
    assert result["reward_score"] == pytest.approx((len(client.texts[0]) / 1000 - 0.1) / 2)


def test_another_rule_that_returns_a_number(tokenizer):
    row = row_of(tokenizer, ["so", RIGHT])
    config_path = {"mode": "weighted", "squash": "tanh", "rule_weight": 1.0, "rm_weight": 0.0}
    from verl_aiops.rewards.managers.combined import AiopsCombinedRewardManager

    async def go():
        config = configuration(**config_path)
        config.reward.custom_reward_function.path = "some.py"
        manager = AiopsCombinedRewardManager(config, tokenizer, lambda **kwargs: 0.25, "nowhere:1", tokenizer)
        manager.client = Client()
        return await manager.run_single(row)

    result = asyncio.run(go())
    assert result["reward_score"] == 0.25 and result["reward_extra_info"]["rule"] == 0.25


def test_verl_calls_the_manager_with_a_reward_model_only_where_a_function_is_named(tokenizer):
    """The reason for what the preflight fills in; when this fails, verl has mended it and the filling can go."""
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    called = []

    class Manager:
        async def run_single(self, data):
            called.append("manager")
            return {}

    worker = RewardLoopWorker.__new__(RewardLoopWorker)
    worker.config = OmegaConf.create(
        {"reward": {"custom_reward_function": {"path": None}, "reward_model": {"enable": 1}}}
    )
    worker.reward_manager = Manager()

    async def alone(data):
        called.append("reward model")

    worker.compute_score_disrm = alone
    asyncio.run(worker.compute_score([0]))
    worker.config.reward.custom_reward_function.path = "pkg://x"
    asyncio.run(worker.compute_score([0]))
    assert called == ["reward model", "manager"]


def test_of_several_reward_models_each_reads_its_own_template_and_all_are_told(tokenizer):
    import copy

    from verl_aiops.rewards.managers.combined import AiopsCombinedRewardManager, _Other

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    clients = [Client(), Client(), Client()]

    async def go(error=None):
        clients[2].error = error
        manager = AiopsCombinedRewardManager(
            configuration(mode="rm_only", squash="raw"), tokenizer, None, "nowhere:1", tokenizer
        )
        manager.client = clients[0]
        manager.others = [_Other(clients[1], other, Moments(), None, 2.0), _Other(clients[2], other, Moments(), 9, 1.0)]
        manager.others[1] = _Other(clients[2], tokenizer, Moments(), None, 1.0)
        return (await manager.run_single(row_of(tokenizer, None, (), RIGHT)))["reward_extra_info"]

    info = asyncio.run(go())
    assert clients[1].texts[0].startswith("[user] logs") and clients[0].texts == clients[2].texts
    first, second, third = (len(client.texts[0]) / 1000 for client in clients)
    assert [info[f"rm_member_{at}"] for at in range(3)] == [first, second, third]
    assert info["rm"] == pytest.approx((first + 2 * second + third) / 4) and info["rm_raw"] == first
    assert info["rm_spread"] > 0 and info["rm_failed"] == 0.0
    info = asyncio.run(go("gone"))
    assert (
        math.isnan(info["rm"]) and math.isnan(info["score"]) and (info["rm_failed"], info["rm_error"]) == (1.0, "gone")
    )
