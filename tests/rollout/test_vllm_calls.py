"""What our agent loops ask of verl's vLLM server, whose own code answers here; vLLM itself is not installed."""

import asyncio
import sys
import types
from types import SimpleNamespace

import pytest
import vllm_server
from investigation_parts import CASE, PROMPT, VERDICT, call
from omegaconf import OmegaConf
from vllm_server import Client, Server

# verl's, for a training row
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


@pytest.fixture(autouse=True)
def constraints(monkeypatch):
    """The one name that our loops import from vLLM."""
    module = types.ModuleType("vllm.sampling_params")
    module.StructuredOutputsParams = vllm_server.StructuredOutputsParams
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", module)


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False) + [2]


def run_loop(cls, tokenizer, model_dir, server, custom, row, prompt_length=64, response=80, **rollout):
    section = {"name": "vllm", "seed": 42, "prompt_length": prompt_length, "response_length": response, **rollout}
    section["custom"] = custom
    config = OmegaConf.create({"actor_rollout_ref": {"model": {"path": str(model_dir)}, "rollout": section}})
    given = dict(SAMPLING)

    async def go():
        loop = cls(
            trainer_config=SimpleNamespace(config=config),
            server_manager=Client(server),
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=None,
            data_config=SimpleNamespace(config=OmegaConf.create({})),
        )
        return await loop.run(given, uid="u", global_steps=1, **row)

    output = asyncio.run(go())
    assert given == SAMPLING
    return output


def rounds(tokenizer, model_dir, server, **settings):
    from verl_aiops.rollout.rounds.agent_loop import AiopsMturnAgentLoop

    row = {"raw_prompt": [{"role": "user", "content": "What failed?"}], "extra_info": {"rounds": ["Now JSON."]}}
    custom = {"aiops_mturn": {"round_tokens": [30, 20], **settings}}
    return run_loop(AiopsMturnAgentLoop, tokenizer, model_dir, server, custom, row)


def test_rounds_are_asked_for_as_vllm_takes_them(tokenizer, tiny_model_dir):
    first, second = encode(tokenizer, "cart-db fails"), encode(tokenizer, '{"service": "cart-db"}')
    server = Server([first, second])
    output = rounds(tokenizer, tiny_model_dir, server)
    assert [asked.sampling.max_tokens for asked in server.asked] == [30, 20]
    assert all(asked.sampling.seed is None and asked.sampling.logprobs == 0 for asked in server.asked)
    assert all(asked.sampling.temperature == 0.7 and not asked.sampling.ignore_eos for asked in server.asked)
    # one id: the balancer keeps the conversation on one server
    assert len({asked.request for asked in server.asked}) == 1 and server.asked[0].priority == 0
    # the second request is the first, what was answered, and the next round
    ids = [asked.prompt["prompt_token_ids"] for asked in server.asked]
    assert ids[1][: len(ids[0]) + len(first)] == [*ids[0], *first] and len(ids[1]) > len(ids[0]) + len(first)
    assert output.extra_fields["global_steps"] == 3
    own = [logp for logp, mask in zip(output.response_logprobs, output.response_mask) if mask]
    assert own == [-float(token) for token in (*first, *second)]


def test_the_last_round_is_constrained_by_vllms_own_class(tokenizer, tiny_model_dir):
    server = Server([encode(tokenizer, "x")] * 2)
    rounds(tokenizer, tiny_model_dir, server, json_schema=True)
    free, constrained = (asked.sampling.structured_outputs for asked in server.asked)
    assert free is None and constrained.json["required"] == ["service", "incident_type"]


def test_an_engine_without_room_says_so(tokenizer, tiny_model_dir):
    """verl's, before vLLM refuses what it would call invalid."""
    with pytest.raises(ValueError, match="leaves no room to generate"):
        rounds(tokenizer, tiny_model_dir, Server([[2]], max_model_len=2))


def test_investigations_are_asked_for_as_vllm_takes_them(tokenizer, tiny_model_dir):
    import json

    from verl_aiops.rollout.tools.agent_loop import AiopsToolsAgentLoop

    texts = [call(service="cart-db"), VERDICT]
    server = Server([encode(tokenizer, text) for text in texts], max_model_len=6000)
    row = {"raw_prompt": PROMPT, "extra_info": {"case": json.dumps(CASE)}}
    custom = {"aiops_tools": {"verdict_tokens": 200}}
    output = run_loop(
        AiopsToolsAgentLoop, tokenizer, tiny_model_dir, server, custom, row, prompt_length=2000, response=3000
    )
    assert output.extra_fields["turns"] == texts
    for asked in server.asked:
        assert asked.sampling.max_tokens >= 200 and asked.sampling.seed is None
        assert asked.sampling.stop_token_ids is None or all(
            isinstance(stop, int) for stop in asked.sampling.stop_token_ids
        )


def test_a_seed_as_the_rollout_hf_takes_it_would_stop_the_engine(tokenizer, tiny_model_dir):
    """Why the loops send none: vLLM's are whole numbers."""
    server = Server([encode(tokenizer, "x")])
    with pytest.raises(TypeError, match="seed"):
        asyncio.run(server.generate(prompt_ids=[1], sampling_params={"seed": "42/1/0"}, request_id="u"))
    assert server.asked == []


def test_vllms_adapter_takes_what_verl_hands_our_trainers():
    """Found in the source, since importing it imports vLLM."""
    tree = vllm_server.source_of("workers/rollout/vllm_rollout/vllm_rollout.py")
    names = {node.name for node in tree.body if hasattr(node, "name")}
    assert "ServerAdapter" in names
    found = {node.name for node in vllm_server.methods(tree, "ServerAdapter", "resume", "release", "update_weights")}
    assert found == {"resume", "release", "update_weights"}
    (generate,) = vllm_server.methods(
        vllm_server.source_of("workers/rollout/vllm_rollout/vllm_async_server.py"), "vLLMHttpServer", "generate"
    )
    takes = [argument.arg for argument in generate.args.args]
    assert {"request_id", "prompt_ids", "sampling_params", "priority"} <= set(takes)
