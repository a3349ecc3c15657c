"""The two log-prob backends give the same numbers: layout, attention, head, whole models, and who gets which."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from logprob_pairs import assert_same, hard_pairs, ids, log_probs_and_gradients, pair
from omegaconf import OmegaConf
from tiny import make_tiny_model
from tiny_lms import VOCABULARY, tiny_config, tiny_lm
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM

from verl_aiops.trainers.config import ConfigError, DPOConfig
from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.logprobs import LOGPROB_BACKENDS
from verl_aiops.trainers.logprobs.attention import SHARED_ATTENTION
from verl_aiops.trainers.logprobs.head import label_log_probs
from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.sequence_parallel import why_not_split
from verl_aiops.trainers.logprobs.support import choose_backend, settle_backend, why_not_shared

# tests/models/test_families.py compares all others
KINDS = ("glm4", "llama", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
KINDS += ("starcoder2",)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True},
        # one layer with a window and one without, where the model can
        {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1},
    ],
    ids=["plain", "tied", "window"],
)
def test_log_probs_and_every_gradient_equal_those_of_two_rows(kind, settings):
    assert_same(tiny_lm(kind, **settings))


def test_every_attention_layout_of_heads():
    for kv_heads in (1, 2, 4):
        assert_same(tiny_lm(num_key_value_heads=kv_heads))


def test_with_gradient_checkpointing():
    model = tiny_lm("qwen2", sliding_window=6, use_sliding_window=True, max_window_layers=1)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert_same(model)


def test_with_lora():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(tiny_lm(), LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert_same(model)
    base = log_probs_and_gradients(tiny_lm(), "rows")[0]
    with model.disable_adapter(), torch.no_grad():
        batch = pair_batch(hard_pairs(), mini_pairs=6, logprob_backend="shared_prompt")
        off = LOGPROB_BACKENDS["shared_prompt"](model, batch, packed=False, device="cpu")
    torch.testing.assert_close(off.values() * batch["response_mask"].values(), base, rtol=0, atol=2e-5)


def test_many_answers_to_one_prompt_cost_it_once():
    g = torch.Generator().manual_seed(5)
    prompt = ids(g, 30)
    answers = [ids(g, n) for n in (4, 6, 5, 7)]
    pairs = [pair(prompt, answers[i], answers[j]) for i in range(4) for j in range(i + 1, 4)]
    rows = [row for p in pairs for row in (p["chosen_ids"], p["rejected_ids"])]
    layout = SharedLayout([prompt] * 12, rows, [torch.ones(len(r)) for r in rows])
    assert len(layout.input_ids) == 30 + sum(len(a) - 1 for a in answers)
    assert_same(tiny_lm(), pairs)


def test_unlabelled_answers_still_go_through_the_model():
    """A worker that left the forward pass out would leave the others waiting in FSDP's collectives."""
    g = torch.Generator().manual_seed(6)
    unlabelled = pair(ids(g, 5), ids(g, 3), ids(g, 3), torch.zeros(3)) | {"rejected_mask": torch.zeros(3)}
    model = tiny_lm()
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    values, gradients = log_probs_and_gradients(model, "shared_prompt", [unlabelled])
    assert calls and not values.any()
    assert all(not gradient.any() for gradient in gradients.values())


# --- layout ----------------------------------------------------------------------------------------------------------


def random_rows(rng):
    prompts = [torch.from_numpy(rng.integers(0, 3, rng.integers(1, 5))) for _ in range(3)]
    chosen = [prompts[rng.integers(3)] for _ in range(rng.integers(1, 7))]
    answers = [torch.from_numpy(rng.integers(0, 2, rng.integers(0, 6))) for _ in chosen]
    masks = [torch.from_numpy(rng.integers(0, 2, len(a))).float() for a in answers]
    return chosen, answers, masks


def seen_by_each_token(layout):
    """For each place in the sequence, the places that it attends to, in order."""
    result, query, key = {}, 0, 0
    for queries, keys in zip(layout.query_lengths, layout.key_lengths, strict=True):
        own = layout.keys[key : key + keys].tolist()
        for at in range(queries):
            result[query + at] = own[: keys - queries + at + 1]
        query, key = query + queries, key + keys
    return result


def test_layouts_of_random_rows_hold_each_rows_own_context():
    """Brute force: what a label's source sees is exactly its own row up to the token before it."""
    rng = np.random.default_rng(0)
    shared = 0
    for _ in range(300):
        prompts, answers, masks = random_rows(rng)
        if not any(len(p) + len(a) > 1 for p, a in zip(prompts, answers)):
            continue
        layout = SharedLayout(prompts, answers, masks)
        seen = seen_by_each_token(layout)
        assert sorted(seen) == list(range(len(layout.input_ids)))
        assert layout.query_ends.tolist() == [0, *np.cumsum(layout.query_lengths)]
        assert layout.key_ends.tolist() == [0, *np.cumsum(layout.key_lengths)]
        for place, context in seen.items():
            assert context[-1] == place and layout.position_ids[context].tolist() == list(range(len(context)))
        wanted = {}
        slot = 0
        for prompt, answer, mask in zip(prompts, answers, masks):
            for at, token in enumerate(answer.tolist()):
                if mask[at] > 0:
                    wanted[slot] = ([*prompt.tolist(), *answer[:at].tolist()], token)
                slot += 1
        found = {}
        for source, token, place in zip(layout.label_sources, layout.label_ids, layout.slots):
            context = seen[int(layout.sources[source])]
            found[int(place)] = (layout.input_ids[context].tolist(), int(token))
        assert found == wanted and layout.answer_tokens == slot
        assert layout.label_sources.tolist() == sorted(layout.label_sources.tolist())
        shared += sum(len(p) + len(a) - 1 for p, a in zip(prompts, answers)) - len(layout.input_ids)
    assert shared > 0


# --- head ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3 * VOCABULARY, 4 * VOCABULARY + 7, 1 << 20])
def test_chunks_of_the_head_change_nothing(at_once):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, VOCABULARY)
    hidden = torch.randn(10, 16, requires_grad=True)
    sources = torch.tensor([0, 0, 1, 3, 3, 3, 6, 9])
    labels = torch.randint(VOCABULARY, (8,))
    weights = torch.randn(8)

    def gradients(values):
        return torch.autograd.grad((values * weights).sum(), [hidden, *head.parameters()])

    direct = head(hidden).log_softmax(-1)[sources, labels]
    chunked = label_log_probs(head, hidden, sources, labels, vocabulary=VOCABULARY, logits_at_once=at_once)
    torch.testing.assert_close(chunked, direct, rtol=0, atol=1e-5)
    for one, other in zip(gradients(direct), gradients(chunked), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_no_more_logits_at_once_than_allowed():
    widest = []
    head = torch.nn.Linear(4, 50)

    def watched(hidden):
        widest.append(len(hidden) * 50)
        return head(hidden)

    hidden = torch.randn(23, 4, requires_grad=True)
    label_log_probs(
        watched, hidden, torch.arange(23), torch.zeros(23, dtype=torch.int64), vocabulary=50, logits_at_once=250
    ).sum().backward()
    assert max(widest) <= 250 and len(widest) == 10  # five chunks, each once more in the backward pass


@pytest.fixture
def positions(monkeypatch):
    """positions(model, backend, pairs, **arguments): how many the head computes logits for, and the log-probs."""

    def seen(model, backend, pairs, packed=False):
        head, counted = model.get_output_embeddings(), []
        forward = type(head).forward

        def counting(self, hidden):
            if self is head:
                counted.append(hidden[..., 0].numel())
            return forward(self, hidden)

        monkeypatch.setattr(type(head), "forward", counting)
        batch = pair_batch(pairs, mini_pairs=len(pairs), logprob_backend=backend)
        with torch.no_grad():
            values = LOGPROB_BACKENDS[backend](model, batch, packed=packed, device="cpu").values()
        monkeypatch.undo()
        return sum(counted), values

    return seen


def long_and_short_prompts():
    """Answers of 4 tokens each, to prompts of 250 and of 12: no stretch of columns has all labels and little else."""
    g = torch.Generator().manual_seed(4)
    return [pair(ids(g, prompt), ids(g, 4), ids(g, 4)) for prompt in (250, 12, 120, 60)]


@pytest.mark.parametrize("backend, packed", [("rows", False), ("rows", True), ("shared_prompt", False)])
def test_the_head_computes_no_logits_where_no_label_is(positions, backend, packed):
    pairs = long_and_short_prompts()
    count, values = positions(tiny_lm("qwen2"), backend, pairs, packed)
    assert len(values) == 8 * 4
    # where the prompt ends, both answers of a pair begin
    assert count == len(values) - (len(pairs) if backend == "shared_prompt" else 0)


def _plain(pair):
    return {name: torch.as_tensor(value).tolist() for name, value in pair.items() if name.endswith("_ids")}


def test_answers_that_begin_alike_share_positions_of_the_head(positions):
    count, _ = positions(tiny_lm("qwen2"), "shared_prompt", hard_pairs())
    rows, values = positions(tiny_lm("qwen2"), "rows", hard_pairs())
    # a row that is there twice is computed once
    answers = {
        (tuple(pair["prompt_ids"]), tuple(pair[f"{side}_ids"])): len(pair[f"{side}_ids"])
        for pair in map(_plain, hard_pairs())
        for side in ("chosen", "rejected")
    }
    assert count < rows == sum(answers.values()) < len(values)


@pytest.mark.parametrize(
    "kind, settings, known",
    [
        ("gemma3_text", {"final_logit_softcapping": 5.0}, True),
        ("granite", {}, True),
        # a name that means something where another type of model has it
        ("llama", {"logits_scaling": 3.0}, False),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_models_of_which_is_not_known_what_they_do_after_the_head_are_asked_for_logits(
    positions, kind, settings, known, packed
):
    model, pairs = tiny_lm(kind, **settings).eval(), long_and_short_prompts()
    count, values = positions(model, "rows", pairs, packed)
    # packed, the model can be asked for single positions
    assert (count == len(values)) is (known or packed)
    exact = []
    with torch.no_grad():
        for p in pairs:
            for answer in (p["chosen_ids"], p["rejected_ids"]):
                logits = model(input_ids=torch.cat([p["prompt_ids"], answer])[None]).logits[0, -len(answer) - 1 : -1]
                exact.append(logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1))
    torch.testing.assert_close(values, torch.cat(exact), rtol=0, atol=2e-5)


def test_a_forward_pass_that_goes_past_the_head_is_told():
    model = tiny_lm()
    head = model.lm_head
    model.forward = lambda **_: SimpleNamespace(logits=torch.zeros(1, 9, VOCABULARY))
    with pytest.raises(RuntimeError, match="LlamaForCausalLM used its head 0 times.*use_fused_kernels"):
        log_probs_and_gradients(model, "rows")
    assert "forward" not in vars(head)


def test_a_model_that_fsdp2_has_wrapped_is_as_compared_as_before():
    """It has another class then, which is no reason to try it."""
    from verl_aiops.models.company import is_compared

    model = tiny_lm()
    assert is_compared(model)
    model.__class__ = type("FSDPLlama", (FSDPModule, type(model)), {"__module__": FSDPModule.__module__})
    assert is_compared(model)
    model.__class__ = type("Llama", (type(tiny_lm()),), {"__module__": "transformers_modules.of_a_hub"})
    assert not is_compared(model)


def test_half_precision_logits_are_summed_in_float32():
    model = tiny_lm().bfloat16()
    with torch.no_grad():
        batch = pair_batch(hard_pairs(), mini_pairs=6, logprob_backend="shared_prompt")
        assert LOGPROB_BACKENDS["shared_prompt"](model, batch, packed=False, device="cpu").dtype == torch.float32


@pytest.mark.parametrize(
    "device, dtype, tolerance",
    [
        ("cpu", torch.float32, 1e-6),
        # half a unit in the last place: the sum is rounded once
        pytest.param("cuda", torch.bfloat16, 2**-8, marks=needs_gpu),
        pytest.param("cuda", torch.float16, 2**-11, marks=needs_gpu),
    ],
)
def test_the_gradient_of_repeated_keys_is_that_of_indexing(device, dtype, tolerance):
    from verl_aiops.trainers.logprobs.attention import _KeysOfSegments
    from verl_aiops.trainers.logprobs.layout import SharedLayout

    prompts = [torch.arange(2, 9)] * 5 + [torch.arange(3, 6)] * 2 + [torch.tensor([7])]
    answers = [torch.tensor(a) for a in ([5, 1], [5, 2, 3, 4], [6], [6], [], [2, 3], [4, 5], [8, 9])]
    layout = SharedLayout(prompts, answers, [torch.ones(len(a)) for a in answers]).to(device)
    tokens = torch.randn(len(layout.input_ids), 2, 3, device=device, dtype=dtype, requires_grad=True)
    # of one sign, so that no sum cancels out and the last place is that of the sum
    gradient = torch.rand(len(layout.keys), 2, 3, device=device, dtype=dtype)
    assert layout.keys.bincount().max() > 3
    expected = torch.zeros(tokens.shape, device=device).index_add_(0, layout.keys, gradient.float())
    ours = _KeysOfSegments.apply(tokens, layout)
    assert torch.equal(ours, tokens[layout.keys])
    (result,) = torch.autograd.grad(ours, tokens, gradient)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, rtol=tolerance, atol=1e-6)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize(
    "kind, settings",
    [
        ("qwen2", {}),
        ("qwen2", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
        # sinks after a kernel that knows nothing of them, and scores that no kernel here caps
        ("gpt_oss", {"sliding_window": 6}),
        ("gemma2", {"sliding_window": 6}),
    ],
)
def test_the_kernel_for_all_segments_gives_what_one_by_one_gives(kind, settings, monkeypatch):
    """In bfloat16: against float32 rows, the shared sequence is no further off than bfloat16 rows are."""
    from verl_aiops.trainers.logprobs import attention

    assert attention.has_varlen_kernel()
    used = []
    kernel_of = attention._kernel_of_all_segments
    monkeypatch.setattr(attention, "_kernel_of_all_segments", lambda scores: used.append(1) or kernel_of(scores))

    def values_and_gradients(backend, dtype):
        model = tiny_lm(kind, head_dim=16, **settings).to("cuda", dtype)
        batch = pair_batch(hard_pairs(), mini_pairs=6, logprob_backend=backend)
        result = LOGPROB_BACKENDS[backend](model, batch, packed=False, device="cuda")
        labelled = result.values() * batch["response_mask"].values().cuda()
        (labelled * torch.linspace(-1, 1, len(labelled), device="cuda")).sum().backward()
        gradients = torch.cat([p.grad.float().flatten() for p in model.parameters()])
        return labelled.detach(), gradients

    exact, exact_gradients = values_and_gradients("rows", torch.float32)
    rows, rows_gradients = values_and_gradients("rows", torch.bfloat16)
    shared, shared_gradients = values_and_gradients("shared_prompt", torch.bfloat16)
    assert used
    assert (shared - exact).abs().mean() <= 1.5 * (rows - exact).abs().mean() + 1e-3
    gap = torch.linalg.vector_norm(shared_gradients - exact_gradients)
    assert gap <= 1.5 * torch.linalg.vector_norm(rows_gradients - exact_gradients)


# --- what the attention refuses --------------------------------------------------------------------------------------


def test_attention_that_would_change_the_numbers_is_refused():
    model = tiny_lm(attention_dropout=0.1)
    model.train()
    with pytest.raises(NotImplementedError, match="dropout.*logprob_backend=rows"):
        log_probs_and_gradients(model, "shared_prompt")


def test_layers_that_swallow_the_layout_are_noticed():
    model = tiny_lm()
    layer = model.model.layers[0].self_attn
    forward = layer.forward
    layer.forward = lambda *args, shared_layout=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(NotImplementedError, match="LlamaAttention cannot share prompts.*do not pass arguments on"):
        log_probs_and_gradients(model, "shared_prompt")


def test_a_saved_model_knows_nothing_of_it(tmp_path):
    model = tiny_lm()
    log_probs_and_gradients(model, "shared_prompt")
    model.save_pretrained(tmp_path)
    assert SHARED_ATTENTION not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation != SHARED_ATTENTION


# --- who gets which --------------------------------------------------------------------------------------------------


def run_config(model_dir, **changes):
    config = OmegaConf.create(
        {
            "trainer": {"device": "cpu"},
            "algorithm": {"dpo": {"logprob_backend": "auto"}},
            "data": {"max_prompt_length": 10, "max_response_length": 3},
            "actor_rollout_ref": {
                "actor": {"ulysses_sequence_parallel_size": 1, "fsdp_config": {"mixed_precision": None}},
                "model": {"path": str(model_dir), "use_shm": False, "trust_remote_code": False, "use_liger": False},
            },
        }
    )
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


def test_auto_takes_shared_prompt_and_says_so(tmp_path):
    config = run_config(make_tiny_model(tmp_path))
    lines = settle_backend(config, DPOConfig())
    assert lines == ["algorithm.dpo.logprob_backend=shared_prompt (each prompt goes through the model once)"]
    assert config.algorithm.dpo.logprob_backend == "shared_prompt"
    assert settle_backend(config, DPOConfig(logprob_backend="shared_prompt")) == []


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"actor_rollout_ref.actor.ulysses_sequence_parallel_size": 3}, "attention cannot be shared out over 3"),
        ({"actor_rollout_ref.model.use_liger": True}, "use_liger=True"),
        ({"trainer.device": "cuda", "actor_rollout_ref.actor.fsdp_config.mixed_precision": {"param_dtype": "fp32"}},
         "half precision, and mixed_precision.param_dtype=fp32"),
    ],
)  # fmt: skip
def test_rows_where_prompts_cannot_be_shared(tmp_path, changes, reason):
    config = run_config(make_tiny_model(tmp_path), **changes)
    backend, why = choose_backend(config, DPOConfig())
    assert backend == "rows" and reason in why
    with pytest.raises(ConfigError, match="algorithm.dpo.logprob_backend=shared_prompt: .*Set it to rows or auto"):
        choose_backend(config, DPOConfig(logprob_backend="shared_prompt"))
    assert choose_backend(config, DPOConfig(logprob_backend="rows"))[0] == "rows"


def test_workers_that_have_a_sequence_together_share_prompts(tmp_path):
    folder = make_tiny_model(tmp_path)
    config = run_config(folder, **{"actor_rollout_ref.actor.ulysses_sequence_parallel_size": 2})
    assert choose_backend(config, DPOConfig())[0] == "shared_prompt"


@pytest.mark.parametrize(
    "heads, kv_heads, workers, why",
    [
        (8, 2, 2, None),
        (8, 2, 4, None),
        (8, 2, 8, None),
        (8, 2, 3, "its 8 heads of attention"),
        (12, 3, 4, "its 3 heads of keys and values"),
        (12, 3, 6, None),
        (12, 4, 6, "its 4 heads of keys and values"),
    ],
)
def test_heads_that_can_be_shared_out_over_workers(heads, kv_heads, workers, why):
    said = why_not_split(heads, kv_heads, workers)
    assert said is None if why is None else said.startswith(why)


def test_unknown_models_and_dropout_get_rows(tmp_path):
    folder = make_tiny_model(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "gpt2"}))
    assert "'gpt2' have not been compared" in choose_backend(run_config(folder), DPOConfig())[1]
    dropping = SimpleNamespace(model_type="llama", attention_dropout=0.1)
    assert "attention_dropout=0.1" in why_not_shared(dropping, run_config(folder))


def test_the_reference_model_must_be_able_to_share_as_well(tmp_path):
    policy, reference = make_tiny_model(tmp_path / "policy"), make_tiny_model(tmp_path / "reference")
    content = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(content | {"model_type": "gpt2"}))
    backend, why = choose_backend(run_config(policy), DPOConfig(reference_path=str(reference)))
    assert backend == "rows" and "'gpt2'" in why
    assert choose_backend(run_config(policy), DPOConfig(reference_path=str(policy)))[0] == "shared_prompt"


def test_old_pytorch_on_a_gpu_gets_rows(tmp_path, monkeypatch):
    config = run_config(make_tiny_model(tmp_path), **{"trainer.device": "cuda"})
    model = SimpleNamespace(model_type="llama")
    support = "verl_aiops.trainers.logprobs.support"
    monkeypatch.setattr(f"{support}.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(f"{support}.importlib.metadata.version", lambda name: "2.9.1+cu128")
    assert "flash-attn or PyTorch 2.10 (here 2.9.1" in why_not_shared(model, config)
    monkeypatch.setattr(f"{support}.importlib.metadata.version", lambda name: "2.11.0+cu130")
    assert why_not_shared(model, config) is None


def test_a_batch_counts_the_tokens_that_the_model_sees():
    pairs = hard_pairs()
    rows = pair_batch(pairs, mini_pairs=6)["input_ids"].offsets().diff()
    shared = pair_batch(pairs, mini_pairs=6, logprob_backend="shared_prompt")["input_ids"].offsets().diff()
    assert torch.equal(shared[0::2], rows[0::2])
    assert shared[1::2].tolist() == [len(p["rejected_ids"]) for p in pairs]


@pytest.mark.parametrize(
    "kind, settings, why",
    [
        ("llama", {"final_logit_softcapping": 30.0}, "changes its logits after the head"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, None),
        ("phimoe", {"sliding_window": 6}, "which only the mask knows"),
        ("phi", {"attention_dropout": 0.1}, "trains with attention_dropout=0.1"),
        ("qwen2_moe", {"sliding_window": 6, "use_sliding_window": True}, "which only the mask knows"),
        (
            "phi3",
            {
                "original_max_position_embeddings": 24,
                "rope_parameters": {
                    **{"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24},
                    **{"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "partial_rotary_factor": 1.0},
                },
            },
            "rotary embedding is another for rows beyond 24 tokens",
        ),
        ("qwen2_moe", {"sliding_window": 6, "use_sliding_window": False}, None),
    ],
)
def test_settings_of_a_listed_family_that_keep_prompts_from_being_shared(kind, settings, why):
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {
                "actor": {"ulysses_sequence_parallel_size": 1, "fsdp_config": {}},
                "model": {"use_liger": False, "trust_remote_code": False},
            },
            "data": {"max_prompt_length": 20, "max_response_length": 10},
            "trainer": {"device": "cpu"},
        }
    )
    said = why_not_shared(tiny_config(kind, **settings), config)
    assert said is None if why is None else why in said


def test_on_a_gpu_keys_and_values_of_different_sizes_are_left_to_rows():
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {
                "actor": {"ulysses_sequence_parallel_size": 1, "fsdp_config": {}},
                "model": {"use_liger": False, "trust_remote_code": False},
            },
            "data": {"max_prompt_length": 20, "max_response_length": 10},
            "trainer": {"device": "cuda"},
        }
    )
    assert "keys and values of one size" in why_not_shared(tiny_config("deepseek_v3"), config)
    assert why_not_shared(tiny_config("gemma"), config) is None
