"""Reasoning blocks: read off the template, taken out of answers, left out of pairs, and worth nothing by themselves."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHATML, make_tokenizer

from verl_aiops.data.rendering import PairRenderer
from verl_aiops.data.rows import Columns, parse_row
from verl_aiops.reasoning import MARKERS, MAX_BLOCKS, Found, is_block, reasoning_of, reward_settings, visible
from verl_aiops.rewards.aiops_mturn import compute_score, read_answer

RIGHT = '{"service": "db", "incident_type": "disk"}'
WRONG = '{"service": "web", "incident_type": "lag"}'
TEXT = "db: disk is at 100 %\nweb: fine"
TRUTH = {"service": "db", "incident_type": "disk", "evidence": ["disk is at 100 %"]}

# the last turn as Qwen3's template writes it
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "{% set parts = m.content.split('</think>') %}<think>\n"
    "{{ parts[0].split('<think>')[-1].strip() if parts|length > 1 else '' }}"
    "\n</think>\n\n{{ parts[-1].lstrip() }}{% else %}{{ m.content.split('</think>')[-1].lstrip() }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# the generation prompt opens the block, as Nemotron's and Qwen3.5's do
OPENED = QWEN3.replace(
    "<|im_start|>assistant\n{% if enable",
    "<|im_start|>assistant\n{% if enable_thinking is not defined %}<think>\n{% endif %}{% if enable",
)


def score(answer, early=None, **settings):
    turns = [*([early] if early is not None else []), answer]
    return compute_score("aiops_mturn", "", TRUTH, {"turns": turns, "incident_text": TEXT}, **settings)


# --- what a text says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKERS)
def test_an_answer_after_a_block_is_read_under_its_own_markers_alone(name):
    mark = MARKERS[name]
    written = f"{mark.open}\nIt is the disk.{mark.close}\n\n{RIGHT}"
    assert score(written)["json_ok"] == 0.0
    result = score(written, reasoning=name)
    assert result["acc_main"] == 1.0 and result["reasoning"] == len(written) - len(RIGHT) - 2
    assert result["chars"] == len(RIGHT) + 2 and result["reasoning_cut"] == 0.0
    assert score(written, reasoning="any") == result
    other = next(other for other in MARKERS if other != name)
    assert score(written, reasoning=other)["json_ok"] == 0.0
    assert read_answer(written, {"reasoning": name}).ok and not read_answer(written, {}).ok


HARMONY = "<|channel|>analysis<|message|>It is the disk.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    "written, name",
    [
        (f"{HARMONY}<|channel|>final<|message|>{RIGHT}", "harmony"),
        (f"{HARMONY}<|channel|>final <|constrain|>json<|message|>{RIGHT}", "harmony"),
        (f"{HARMONY}{HARMONY}<|channel|>final<|message|>{RIGHT}", "harmony"),
        (f"<|channel|>final<|message|>{RIGHT}", "harmony"),
        (f"<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>{RIGHT}<|END_RESPONSE|>", "cohere"),
        (f"<think>\n\n</think>\n\n<response>\n{RIGHT}\n</response>\n", "think"),
        (f"<think></think> <think>more</think>{RIGHT}", "think"),
        (f"<think>{WRONG}</think>{RIGHT}", "think"),
        (RIGHT, "think"),
    ],
)
def test_answers_of_several_families(written, name):
    assert score(written, reasoning=name)["acc_main"] == score(written, reasoning="any")["acc_main"] == 1.0


@pytest.mark.parametrize(
    "written, opened",
    [
        (f"<think>{RIGHT}", False),  # never closed
        (f"<think>{RIGHT}</think>", False),  # the answer is in the thinking alone
        (f"<think>so</think>{RIGHT}<think>or not</think>", False),  # a block after the answer
        (f"{RIGHT}<think>so</think>", False),
        (f"<think><think></think>{RIGHT}</think>", False),  # nested
        (f"<think>a</think>{WRONG}<think>b</think>{RIGHT}", False),  # two answers
        (f"<think>a</think><think>{RIGHT}", False),
        (f"so</think>{RIGHT}", False),  # nothing opened it
        (f"so <think></think>{RIGHT}", False),
        (RIGHT, True),  # inside the block that the prompt opened
        (f"{RIGHT}</think>", True),
        (f"so</think>{RIGHT}</think>", True),
        (f"<response>{RIGHT}</response>", False),  # tags without thinking
        ("<think>x</think>" * (MAX_BLOCKS + 1) + RIGHT, False),
        ("<think>", False),
        ("", True),
    ],
)
def test_thinking_earns_nothing(written, opened):
    result = score(written, reasoning="think", reasoning_opened=opened)
    assert result["json_ok"] == result["score"] == 0.0


def test_where_the_prompt_opened_the_block_the_text_begins_within_it():
    result = score(f"It is the disk.\n</think>\n\n{RIGHT}", reasoning="think", reasoning_opened=True)
    assert result["acc_main"] == 1.0 and result["reasoning"] == len("It is the disk.\n</think>")
    # a server's prompt is not known: a closing marker that nothing opened tells
    assert score(f"It is the disk.\n</think>\n\n{RIGHT}", reasoning="any")["acc_main"] == 1.0
    assert score(f"{HARMONY}<|channel|>final<|message|>{RIGHT}<|end|>", reasoning="any")["acc_main"] == 0.0


def test_an_unclosed_block_is_told_from_a_wrong_answer():
    result = score(f"<think>{RIGHT}", reasoning="think")
    assert result["reasoning_cut"] == 1.0 and result["reasoning"] == len(RIGHT) + 7
    assert score("no", reasoning="think")["reasoning_cut"] == 0.0


def test_thinking_in_an_early_round_is_neither_verdict_nor_quotation():
    said = 'The line "disk is at 100 %" stands out.'
    thought = f"<think>The root cause is db, and '{WRONG}' is not. \"web is down for good\"</think>"
    result = score(RIGHT, thought + said, reasoning="think")
    assert result["score"] == pytest.approx(1.0) and result["invented"] == 0.0 and result["quotes"] == 1.0
    assert score(RIGHT, thought + said)["early_verdict"] == 1.0
    # what is quoted in thought alone is no evidence
    assert score(RIGHT, f"<think>{said}</think>", reasoning="think")["evidence"] == 0.0
    assert score(RIGHT, f"<think>{said}", reasoning="think")["evidence"] == 0.0
    assert score(RIGHT, "<think>x</think>The root cause is db", reasoning="think")["early_verdict"] == 1.0


pieces = st.sampled_from(
    [RIGHT, WRONG, "so ", "\n", *(part for mark in MARKERS.values() for part in (mark.open, mark.close, *mark.answers))]
)


@given(
    st.lists(pieces, max_size=12).map("".join), st.sampled_from([*MARKERS, "any"]), st.sampled_from([True, False, None])
)
def test_whatever_a_model_writes_its_answer_is_what_its_text_ends_with(text, name, opened):
    shown = visible(text, name, opened)
    assert shown.hidden + len(shown.text) == len(text)
    ends = [close for mark in MARKERS.values() for close in mark.ends]
    assert text.endswith(shown.text) or any(close in text for close in ends)
    result = score(text, reasoning=name, reasoning_opened=bool(opened))
    if result["acc_main"]:
        # one answer, and nothing but white space or a closing tag after it
        assert text.rstrip().endswith((RIGHT, *ends)) and text.rindex(RIGHT) > text.rfind(WRONG)


def test_long_texts_take_no_longer_than_their_length():
    for text in ("<think>" * 200_000, "</think>" * 200_000, "<think></think>" * 100_000, " " * 2_000_000):
        assert visible(text, "any", None).hidden <= len(text)


def test_the_keys_are_always_there():
    assert {"reasoning", "reasoning_cut"} <= score("x").keys() == score("<think>", reasoning="any").keys()


@pytest.mark.parametrize("value", ["Think", "", None, 1, True, ["think"]])
def test_an_unknown_setting_is_refused(value):
    with pytest.raises(ValueError, match="reasoning: expected one of none, any, harmony"):
        score(RIGHT, reasoning=value)
    with pytest.raises(ValueError, match="nearest known one is 'reasoning'"):
        score(RIGHT, reasonings=1)


# --- what a template says --------------------------------------------------------------------------------------------


def test_the_markers_are_read_off_template_and_tokenizer():
    assert reasoning_of(make_tokenizer()) is None
    assert reasoning_of(make_tokenizer(chat_template=QWEN3)) == Found("think", False)
    assert reasoning_of(make_tokenizer(chat_template=OPENED)) == Found("think", True)
    assert reasoning_of(make_tokenizer(chat_template=OPENED), {"enable_thinking": False}) == Found("think", False)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[THINK]", "[/THINK]"])
    assert reasoning_of(tokenizer) == Found("THINK", False)
    assert reward_settings(Found("think", True)) == {"reasoning": "think", "reasoning_opened": True}
    assert reward_settings(None) == {}


TEMPLATES = {
    "qwen3": "think",
    "deepseek_r1_distill": "think",
    "glm4moe": "think",
    "nemotron_3_nano": "think",
    "gptoss": "harmony",
}
TEMPLATES |= {
    "gemma4": "channel",
    "qwen3_5_think": "think",
    "qwen2_5": None,
    "llama3": None,
    "phi3_5": None,
    "gemma3": None,
}


def of_trl(name):
    trl = pytest.importorskip("trl")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


@pytest.mark.parametrize("name, expected", TEMPLATES.items())
def test_families(name, expected):
    found = reasoning_of(make_tokenizer(chat_template=of_trl(name)))
    assert (found and found.name) == expected
    if name in ("deepseek_r1_distill", "nemotron_3_nano", "qwen3_5_think"):
        assert found.opened


def test_blocks():
    assert is_block("<think>\n\n</think>\n\n") and is_block("\n<think></think>")
    assert not any(
        map(is_block, ["", "\n", "<think>", "\n</think>\n\n", "<|channel|>final<|message|>", "<think></think>a"])
    )


# --- pairs -----------------------------------------------------------------------------------------------------------


def pair_of(tokenizer, chosen, rejected=WRONG, prompt=None, **arguments):
    prompt = prompt or [{"role": "user", "content": "Which?"}]
    row = parse_row({"prompt": prompt, "chosen": chosen, "rejected": rejected}, Columns())
    (pair,) = PairRenderer(tokenizer, template_arguments=arguments).encode([row])
    trained = [token for token, on in zip(pair.chosen_ids, pair.chosen_mask) if on]
    return tokenizer.decode(pair.prompt_ids), tokenizer.decode(trained), tokenizer.decode(pair.chosen_ids)


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}])
def test_an_empty_block_of_the_templates_own_is_not_learnt(arguments):
    tokenizer = make_tokenizer(chat_template=QWEN3)
    prompt, trained, answer = pair_of(tokenizer, RIGHT, **arguments)
    asked = [{"role": "user", "content": "Which?"}]
    assert prompt == tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **arguments)
    assert trained == answer == RIGHT + "<|im_end|>\n"


def test_what_an_answer_thinks_is_learnt_and_the_other_side_stays_plain():
    tokenizer = make_tokenizer(chat_template=QWEN3)
    thought = f"<think>\nThe disk is full.\n</think>\n\n{RIGHT}"
    prompt, trained, _ = pair_of(tokenizer, thought)
    assert prompt.endswith("<|im_start|>assistant\n") and trained == thought + "<|im_end|>\n"
    _, trained, _ = pair_of(tokenizer, RIGHT, thought)
    assert trained == RIGHT + "<|im_end|>\n"


def test_what_a_model_must_write_before_its_answer_stays_trained():
    tokenizer = make_tokenizer(chat_template=OPENED)
    prompt, trained, _ = pair_of(tokenizer, RIGHT)
    assert prompt.endswith("<think>\n") and trained == f"\n</think>\n\n{RIGHT}<|im_end|>\n"
    assert score(trained.removesuffix("<|im_end|>\n"), reasoning="think", reasoning_opened=True)["acc_main"] == 1.0


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "glm4moe", "nemotron_3_nano", "gptoss", "deepseek_r1_distill"]
)
def test_what_pairs_teach_is_worth_what_it_says_under_each_familys_template(name):
    tokenizer = make_tokenizer(chat_template=of_trl(name))
    ends = ["<|return|>", "<|end|>", "<|user|>", "<｜end▁of▁sentence｜>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ends})
    prompt, trained, _ = pair_of(tokenizer, RIGHT)
    for end in ["<|im_end|>", *ends[:1], ends[-1]]:
        trained = trained.split(end)[0]
    found = reasoning_of(tokenizer)
    settings = reward_settings(found)
    if found.opened and MARKERS[found.name].open not in prompt:
        settings.pop("reasoning_opened")  # the generation prompt does not come back in the conversation
    assert score(trained, **settings)["acc_main"] == 1.0, trained


# --- before a run ----------------------------------------------------------------------------------------------------


@pytest.fixture
def try_answer(tmp_path):
    from omegaconf import OmegaConf

    from verl_aiops.trainers.triage.answer_trial import set_reasoning, try_right_answer

    def run(tokenizer, stops=None, loop="aiops_mturn", rounds=("Now JSON.",), template=None, **kwargs):
        custom = {"path": None, **({"reward_kwargs": kwargs} if kwargs else {})}
        config = {
            "data": {"apply_chat_template_kwargs": template or {}},
            "reward": {"custom_reward_function": custom},
            "actor_rollout_ref": {"rollout": {"agent": {"default_agent_loop": "single_turn_agent"}}},
        }
        config = OmegaConf.create(config)
        lines = set_reasoning(config, tokenizer)
        row = {
            "prompt": [{"role": "user", "content": TEXT}],
            "agent_name": loop,
            "reward_model": {"ground_truth": json.dumps(TRUTH)},
            "extra_info": {"rounds": list(rounds), "incident_text": TEXT},
        }
        try_right_answer(config, tokenizer, stops or frozenset([tokenizer.eos_token_id]), row)
        return lines

    return run


@pytest.mark.parametrize("rounds", [(), ("Now JSON.",), ("Look.", "Now JSON.")])
@pytest.mark.parametrize("template", [CHATML, QWEN3, OPENED])
def test_a_right_answer_passes_with_what_is_read_off_the_template(try_answer, template, rounds):
    lines = try_answer(make_tokenizer(chat_template=template), rounds=rounds)
    assert any("reasoning=think" in line for line in lines) == (template != CHATML)
    assert any("reasoning_opened=True" in line for line in lines) == (template == OPENED)
    try_answer(make_tokenizer(chat_template=template), rounds=(), loop="single_turn_agent")
    try_answer(make_tokenizer(chat_template=template), template={"enable_thinking": False})


def test_a_run_in_which_a_right_answer_earns_nothing_is_stopped(try_answer):
    from verl_aiops.trainers.config import ConfigError

    thinking = make_tokenizer(chat_template=QWEN3)
    with pytest.raises(ConfigError, match=r"earns 0.00 \(json_ok 0\).*reasoning=think.*enable_thinking=False"):
        try_answer(thinking, reasoning="none")
    with pytest.raises(ConfigError, match="earns 0.00"):
        try_answer(make_tokenizer(chat_template=OPENED), reasoning="think", reasoning_opened=False)
    with pytest.raises(ConfigError, match="earns 0.00"):
        try_answer(make_tokenizer(chat_template=CHATML.replace("message['content']", "'> ' + message['content']")))
    with pytest.raises(ConfigError, match="otherwise than it is"):
        try_answer(make_tokenizer(chat_template=CHATML.replace("message['content']", "message['content']|upper")))
    with pytest.raises(
        ConfigError, match="ends an answer with '<.im_end.>.*holds no token that ends generation.*endoftext"
    ):
        try_answer(make_tokenizer(), stops=frozenset([0]))
