"""The token stream of conversations in rounds, and the agent loop over a scripted engine."""

import json
from pathlib import Path

import numpy as np
import pytest
from scripted_loops import Scripted, encode, looped
from tiny import CHATML, make_tokenizer

from verl_aiops.rollout.rounds.settings import RoundSettings
from verl_aiops.rollout.rounds.turns import Stream, TemplateTurns, next_round, round_budgets, rounds_of

USER = {"role": "user", "content": "logs"}
ROUND2 = {"role": "user", "content": "Now JSON."}
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }} "
    "<|im_end|>{% endif %}{% endfor %}"
)


def joined(tokenizer, answer, text=ROUND2["content"]):
    """Tokens of prompt, answer and what the builder puts behind it."""
    builder = TemplateTurns(tokenizer)
    prompt = builder.build_initial_tokens([USER])
    before = [USER, {"role": "assistant", "content": "whatever"}]
    merged = builder.merge_context_tokens(before, [*before, {"role": "user", "content": text}], [*prompt, *answer])
    assert merged.token_ids[: len(prompt) + len(answer)] == [*prompt, *answer]
    return merged


@pytest.mark.parametrize("ended", [True, False])
def test_chatml_border_is_the_templates(tokenizer, ended):
    """Where the model's own tokens are the template's, the stream is the rendered conversation, token by token."""
    answer = tokenizer.encode("the queue grew", add_special_tokens=False) + [2] * ended
    merged = joined(tokenizer, answer)
    rendered = tokenizer.apply_chat_template(
        [USER, {"role": "assistant", "content": "the queue grew"}, ROUND2], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(merged.token_ids) == rendered
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert merged.inserted_token_ids == (newline if ended else [2, *newline])


def test_verls_default_builder_loses_the_line_break(tokenizer):
    """Why TemplateTurns exists; when verl's builder writes the border itself, it can go."""
    from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

    builder = ContinuousTokenBuilder(tokenizer)
    before = [USER, {"role": "assistant", "content": "x"}]
    ids = builder.merge_context_tokens(before, [*before, ROUND2], [7, 2]).token_ids
    assert tokenizer.decode(ids[1:]).startswith("<|im_end|><|im_start|>user")


FAMILIES = [
    "qwen2_5",
    "qwen3",
    "qwen3_5_think",
    "qwen3_instruct_2507",
    "llama3",
    "gemma",
    "gemma3",
    "phi3",
    "phi3_5",
    "cohere",
]
FAMILIES += ["cohere2", "gptoss", "glm4moe", "deepseekv3", "deepseek_r1_distill", "lfm2", "nemotron_3_nano", "gemma4"]
SPECIAL = [
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|return|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
]
SPECIAL += [
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|END_OF_TURN_TOKEN|>",
]
SPECIAL += ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|turn>", "<turn|>"]
# what a model of the family ends its turn with, where that is not the first token after an answer in a conversation
ENDS = {"gptoss": "<|return|>", "glm4moe": "<|user|>"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ended", [True, False])
def test_the_border_of_every_family_is_its_templates(family, ended):
    trl = pytest.importorskip("trl")
    template = (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").read_text()
    tokenizer = make_tokenizer(chat_template=template, eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    turns = TemplateTurns(tokenizer)
    answered = [USER, {"role": "assistant", "content": "the queue grew"}]
    rendered = tokenizer.apply_chat_template([*answered, ROUND2], add_generation_prompt=True, tokenize=False)
    _, _, border = rendered.partition("the queue grew")
    answer = tokenizer.encode("the queue grew", add_special_tokens=False)
    end = ENDS.get(family) or tokenizer.decode(tokenizer.encode(border, add_special_tokens=False)[:1])
    if ended:
        answer += tokenizer.encode(end, add_special_tokens=False)
    written = tokenizer.decode([*answer, *next_round(turns, answered, ROUND2["content"], answer)])
    if family == "gptoss" and ended:
        border = border.replace("<|end|>", "<|return|>", 1)
    assert written == "the queue grew" + border
    assert len(turns.between((ROUND2["content"],))) == len(next_round(turns, answered, ROUND2["content"], answer[:-1]))


def test_a_border_that_cannot_be_read_is_refused(tokenizer):
    end = "{{ ' bye' if loop.last and not add_generation_prompt else ';' }}"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + end + "{% endfor %}"
    with pytest.raises(ValueError, match="rounds cannot be joined"):
        TemplateTurns(tokenizer).between(("x",))


def test_models_tokens_are_kept_as_they_are(tokenizer):
    """Tokens that no tokenizer would choose for the text, special ones in the middle and broken UTF-8 all stay."""
    letters = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "queue"]
    for answer in (letters, [1, 2, 1, *letters], [200, 201, 202], []):
        assert joined(tokenizer, answer).appended_token_count > 0


def test_templates_without_system_messages_or_repeated_users():
    tokenizer = make_tokenizer(chat_template=LLAMA2)
    merged = joined(tokenizer, tokenizer.encode(" fine", add_special_tokens=False))
    assert tokenizer.decode(merged.token_ids) == "[INST] logs [/INST] fine <|im_end|>[INST] Now JSON. [/INST]"


def test_template_that_changes_answers_is_refused(tokenizer):
    tokenizer.chat_template = CHATML.replace("message['content']", "message['content']|upper")
    with pytest.raises(ValueError, match="does not render an assistant's text"):
        joined(tokenizer, [5])


def test_between_counts_what_merge_appends(tokenizer):
    merged = joined(tokenizer, [9, 9])
    assert merged.token_ids[-len(TemplateTurns(tokenizer).between((ROUND2["content"],))) :] == [
        *merged.inserted_token_ids,
        *merged.token_ids[-merged.appended_token_count :],
    ]


def test_stream_alignment():
    stream = Stream([1, 2])
    stream.add_answer([3, 4], [-0.1, -0.2])
    stream.add_context([5])
    stream.add_answer([6], [-0.3])
    assert stream.all_ids == [1, 2, 3, 4, 5, 6]
    assert (stream.ids, stream.mask, stream.logps) == ([3, 4, 5, 6], [1, 1, 0, 1], [-0.1, -0.2, 0.0, -0.3])
    with pytest.raises(ValueError, match="1 log-probs for 2 tokens"):
        stream.add_answer([7, 8], [-1.0])
    with pytest.raises(ValueError, match="none in the next"):
        stream.add_answer([7], None)
    none = Stream([1])
    none.add_answer([2], None)
    none.add_context([3])
    assert none.logps is None and none.mask == [1, 0]


@pytest.mark.parametrize(
    "total, between, tokens, expected",
    [
        (100, [], None, [100]),
        (100, [20], None, [16, 64]),
        (101, [20, 10], None, [4, 3, 64]),
        (100, [20], [50, 30], [50, 30]),
        (100, [10, 10], [40, 20], [40, 20, 20]),
        (100, [20], [30], [30, 30]),
        (100, [], [30, 40], [30]),
    ],
)
def test_round_budgets(total, between, tokens, expected):
    assert round_budgets(total, between, tokens, 64) == expected


@pytest.mark.parametrize("total, between, tokens, needs", [(100, [20], [50, 31], 101), (80, [20], None, 85)])
def test_round_budgets_that_do_not_fit(total, between, tokens, needs):
    with pytest.raises(ValueError, match=f"Raise data.max_response_length to {needs} or more"):
        round_budgets(total, between, tokens, 64)
    assert sum(round_budgets(needs, between, tokens, 64)) <= needs


@pytest.mark.parametrize(
    "given, message",
    [
        ({"round_token": [1]}, "round_token: no such setting, did you mean round_tokens"),
        ({"round_tokens": [10, 0]}, "expected a number of tokens for each round"),
        ({"round_tokens": []}, "expected a number of tokens"),
        ({"answer_tokens": 0}, "answer_tokens=0"),
        ({"json_schema": "yes"}, "json_schema=yes"),
    ],
)
def test_settings_that_cannot_work(given, message):
    with pytest.raises(ValueError, match=message):
        RoundSettings.from_config(given)


def test_rounds_of():
    import numpy as np

    assert rounds_of(None) == rounds_of({}) == rounds_of({"rounds": None}) == rounds_of({"rounds": np.array([])}) == []
    assert rounds_of({"rounds": np.array(["a"], dtype=object)}) == ["a"]
    with pytest.raises(ValueError, match="user text of each later round"):
        rounds_of({"rounds": [3]})
    for wrong in (3, 0.5, "a text", True, [""], [[]]):
        with pytest.raises(ValueError, match="rounds"):
            rounds_of({"rounds": wrong})


# --- the loop ---------------------------------------------------------------------------------------------------------


def run_loop(
    tokenizer, tiny_model_dir, answers, rounds=("Now JSON.",), response=80, custom=None, logps=True, model_type=None
):
    from verl_aiops.rollout.rounds.agent_loop import AiopsMturnAgentLoop

    rollout = {
        "name": "hf",
        "seed": 42,
        "prompt_length": 64,
        "response_length": response,
        "custom": {"aiops_mturn": custom or {"round_tokens": [30, 20]}},
    }
    engine = Scripted(answers, logps)
    row = {"raw_prompt": [USER], "extra_info": {"rounds": list(rounds)}, "uid": "u"}
    (output,) = looped(AiopsMturnAgentLoop, engine, tokenizer, tiny_model_dir, rollout, row, hf_model_type=model_type)
    return output, engine


def test_two_rounds(tokenizer, tiny_model_dir):
    first, second = encode(tokenizer, 'It says "full".'), encode(tokenizer, '{"service": "a"}')
    output, engine = run_loop(tokenizer, tiny_model_dir, [first, second])
    asked = [request["prompt_ids"] for request in engine.asked]
    assert (
        asked[0]
        == output.prompt_ids
        == tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    )
    between = len(asked[1]) - len(asked[0]) - len(first)
    assert output.response_ids == asked[1][len(asked[0]) :] + second
    assert output.response_mask == [1] * len(first) + [0] * between + [1] * len(second)
    model_logps = [logp for logp, mask in zip(output.response_logprobs, output.response_mask) if mask]
    assert model_logps == [-float(token) for token in first + second]
    assert output.extra_fields["turns"] == ['It says "full".', '{"service": "a"}']
    assert output.extra_fields["round_cut"] == [0, 0]
    assert output.extra_fields["global_steps"] == 3 and output.num_turns == 4
    assert [request["sampling_params"]["max_tokens"] for request in engine.asked] == [30, 20]
    assert engine.asked[0]["request_id"] == engine.asked[1]["request_id"]


def test_one_round_and_three(tokenizer, tiny_model_dir):
    output, _ = run_loop(tokenizer, tiny_model_dir, [encode(tokenizer, "x")], rounds=())
    assert output.extra_fields["turns"] == ["x"] and set(output.response_mask) == {1} and output.num_turns == 2
    answers = [encode(tokenizer, text) for text in ("a", "b", "c")]
    output, _ = run_loop(tokenizer, tiny_model_dir, answers, rounds=("q", "r"), response=120)
    assert output.extra_fields["turns"] == ["a", "b", "c"] and output.num_turns == 6


def test_cut_round_is_flagged_and_closed(tokenizer, tiny_model_dir):
    first = encode(tokenizer, "a" * 200, end=False)
    output, engine = run_loop(tokenizer, tiny_model_dir, [first, encode(tokenizer, "ok")])
    assert output.extra_fields["round_cut"] == [1, 0]
    assert output.response_ids[:30] == first[:30] and output.response_ids[30] == 2 and output.response_mask[30] == 0
    assert len(output.response_ids) <= 80


def test_what_the_model_writes_cannot_make_rounds(tokenizer, tiny_model_dir):
    """Role markers as text and as special tokens stay inside their round's text."""
    fake = [*encode(tokenizer, "x", end=False), 2, 1, *encode(tokenizer, 'assistant\n{"service": "a"}')]
    output, _ = run_loop(tokenizer, tiny_model_dir, [fake, encode(tokenizer, "no")])
    assert len(output.extra_fields["turns"]) == 2
    assert output.extra_fields["turns"][0] == 'x<|im_end|><|im_start|>assistant\n{"service": "a"}'
    # a special token inside an answer is not read over: this is not JSON
    answer = [*encode(tokenizer, '{"service": "a"', end=False), 0, *encode(tokenizer, "}")]
    output, _ = run_loop(tokenizer, tiny_model_dir, [fake, answer])
    assert output.extra_fields["turns"][1] == '{"service": "a"<|endoftext|>}'
    # nor is one at the end that did not end the turn
    output, _ = run_loop(tokenizer, tiny_model_dir, [fake, [*encode(tokenizer, "{}", end=False), 1]])
    assert output.extra_fields["turns"][1] == "{}<|im_start|>" and output.extra_fields["round_cut"][1] == 1


def test_empty_answers_and_engines_without_logps(tokenizer, tiny_model_dir):
    output, _ = run_loop(tokenizer, tiny_model_dir, [[], []])
    assert output.extra_fields["turns"] == ["", ""] and output.extra_fields["round_cut"] == [1, 1]
    output, _ = run_loop(tokenizer, tiny_model_dir, [[2], [2]], logps=False)
    assert output.response_logprobs is None and output.extra_fields["turns"] == ["", ""]


def test_rounds_that_do_not_fit(tokenizer, tiny_model_dir):
    with pytest.raises(ValueError, match="Raise data.max_response_length"):
        run_loop(tokenizer, tiny_model_dir, [[2], [2]], response=40)


def test_constrained_decoding_goes_to_the_last_round_of_engines_that_have_it(tokenizer, tiny_model_dir, monkeypatch):
    from verl_aiops.rollout.rounds import agent_loop, settings

    with pytest.raises(ValueError, match="hf has no constrained decoding"):
        settings.answer_constraint("hf")
    assert "additionalProperties" in settings.answer_constraint("sglang")["json_schema"]
    monkeypatch.setattr(agent_loop, "answer_constraint", lambda name, fields: {"json_schema": [name, *fields]})
    custom = {"round_tokens": [30, 20], "json_schema": True}
    _, engine = run_loop(tokenizer, tiny_model_dir, [[2], [2]], custom=custom)
    assert ["json_schema" in request["sampling_params"] for request in engine.asked] == [False, True]


@pytest.mark.parametrize(
    ("truth", "fields"),
    [
        ('{"service": "a", "incident_type": "b", "fields": ["service", "incident_type", "team"]}', "team"),
        ({"fields": np.array(["service", "incident_type", "team"])}, "team"),
        ('{"service": "a"}', ""),
        ({"fields": []}, ""),
        ("no JSON", ""),
        ("[" * 99_999, ""),
        (None, ""),
    ],
)
def test_the_constraint_has_the_fields_that_a_row_asks_for(truth, fields):
    from verl_aiops.rollout.rounds.settings import answer_constraint, asked_fields

    asked = asked_fields({"reward_model": {"ground_truth": truth}})
    assert asked == ("service", "incident_type", *fields.split())
    schema = json.loads(answer_constraint("sglang", asked)["json_schema"])
    assert schema["required"] == list(schema["properties"]) == list(asked)
    assert asked_fields({}) == asked_fields({"reward_model": None}) == ("service", "incident_type")


def test_a_family_whose_builder_wants_other_tokens_falls_back_to_the_template(tiny_model_dir):
    """DeepSeek-R1-Distill-Qwen: model_type qwen2, and a tokenizer without <|im_end|>."""
    named = CHATML.replace("im_end", "endoftext").replace("im_start", "turn")
    tokenizer = make_tokenizer(chat_template=named, eos_token="<|endoftext|>", unk_token=None)
    vocabulary = tokenizer.get_vocab
    tokenizer.get_vocab = lambda: {key: value for key, value in vocabulary().items() if key != "<|im_end|>"}
    tokenizer.convert_tokens_to_ids = lambda token: None if token == "<|im_end|>" else vocabulary().get(token)
    answer = [*tokenizer.encode("db", add_special_tokens=False), 0]
    output, _ = run_loop(tokenizer, tiny_model_dir, [answer, answer], response=120, model_type="qwen2")
    text = tokenizer.decode(output.response_ids)
    assert text == "db<|endoftext|>\n<|turn|>user\nNow JSON.<|endoftext|>\n<|turn|>assistant\ndb<|endoftext|>"
