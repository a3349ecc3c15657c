"""Model folders: a plain one of transformers, or a checkpoint of verl that is merged when its weights are needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from verl_aiops.hub import fetch_model, may_be_on_a_hub
from verl_aiops.inputs.json_text import JsonFault, read_object_file
from verl_aiops.inputs.shown import UserError, brief
from verl_aiops.inputs.weights_file import cut_short
from verl_aiops.models.checkpoint_pickle import refuse_foreign_code

if TYPE_CHECKING:
    import torch

    from verl_aiops.models.merger import ModelMerger

__all__ = ["ModelFolder", "ModelFolderError", "find_model", "merge_checkpoint", "write_model"]

_SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TEXTS = ("*.json", "*.jinja")
_PROBE_BYTES = 1 << 20


class ModelFolderError(UserError):
    """A folder without a model that can be used; the message says what was found instead and how to mend it."""


@dataclass(frozen=True)
class ModelFolder:
    """Where a model lies.

    ``settings`` holds its configuration and tokenizer; ``shards`` is the folder of verl's shards, None where
    ``settings`` holds the weights themselves; ``files`` are the weights.
    """

    path: str
    settings: Path
    shards: Path | None
    files: tuple[Path, ...]

    def fingerprint(self) -> str:
        """A hash of configuration and tokenizer, and of the weights' names, sizes, and first and last mebibyte.

        Another training step changes it, and so does another chat template.
        """
        digest = hashlib.blake2b(digest_size=16)
        texts = sorted(file for pattern in _TEXTS for file in self.settings.glob(pattern))
        for file in (*texts, *self.files):
            size = file.stat().st_size
            digest.update(f"{file.name}/{size}\n".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_PROBE_BYTES))
                stream.seek(max(0, size - _PROBE_BYTES))
                digest.update(stream.read(_PROBE_BYTES))
        return digest.hexdigest()

    @contextmanager
    def weights(self, scratch: Path) -> Iterator[Path]:
        """A folder that transformers can load; verl's shards are merged into ``scratch``, which is removed again."""
        if self.shards is None:
            yield self.settings
            return
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
        try:
            with redirect_stdout(sys.stderr):  # verl's merger talks; the table is what belongs on stdout
                merge_checkpoint(str(self.shards), str(scratch), trust_remote_code=False)
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def find_model(path: str, option: str = "--model") -> ModelFolder:
    """The model in a folder: of transformers, or verl's ``global_step_N`` or its ``actor``; ``option`` named it.

    A name on a hub, ``ORG/NAME``, is the folder that it is kept in here.

    Raises:
        ModelFolderError: there is none that can be used; the message says what was found instead.
        HubError: no hub gives a model under this name.
    """
    folder = Path(path).expanduser()
    where = f"{option} {path}"
    if not folder.is_dir() and may_be_on_a_hub(path):
        folder = fetch_model(path, option)
    if not folder.is_dir():
        raise ModelFolderError(f"{where}: no such folder. Name a model's folder, or a served model with --endpoint.")
    for place in (folder, folder / "actor"):
        shards = sorted(file for file in place.glob("model_world_size_*.pt") if _SHARD.fullmatch(file.name))
        if shards:
            return _checkpoint(where, path, place, shards)
    weights = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    if (folder / "config.json").is_file() and weights:
        _check_language_model(where, folder)
        if cut := cut_short(folder):
            raise ModelFolderError(f"{where}: {cut}")
        return ModelFolder(path, folder, None, tuple(weights))
    raise ModelFolderError(f"{where}: {_what_it_is(folder)}")


def merge_checkpoint(actor: str, target: str, trust_remote_code: bool) -> None:
    """Write the model of a folder of FSDP shards (``global_step_N/actor``) into the empty folder ``target``.

    Raises:
        ForeignCodeError: a shard that would run code when it is read: verl's merger reads by pickle, without limits.
    """
    refuse_foreign_code(sorted(Path(actor).glob("model_world_size_*.pt")))
    _merger(actor, target, trust_remote_code).merge_and_save()
    if os.path.isdir(os.path.join(target, "lora_adapter")):
        _merge_adapter(target, trust_remote_code)


def write_model(weights: dict[str, torch.Tensor], actor: str, target: str, trust_remote_code: bool) -> None:
    """As `merge_checkpoint`, of whole weights in place of shards.

    Args:
        weights: by the names of the trained module, adapters included; emptied in places.
        actor: a folder of a checkpoint as far as it holds no weights: configuration, tokenizer, notes on adapters.
    """
    _merger(actor, target, trust_remote_code).save_hf_model_and_tokenizer(weights)
    if os.path.isdir(os.path.join(target, "lora_adapter")):
        _merge_adapter(target, trust_remote_code)


def _merger(actor: str, target: str, trust_remote_code: bool) -> ModelMerger:
    from verl_aiops.models.merger import ModelMerger
    from verl_aiops.seam.engine import ModelMergerConfig

    os.makedirs(target, exist_ok=True)
    return ModelMerger(
        ModelMergerConfig(
            operation="merge",
            backend="fsdp",
            local_dir=actor,
            target_dir=target,
            hf_model_config_path=os.path.join(actor, "huggingface"),
            trust_remote_code=trust_remote_code,
        )
    )


def _merge_adapter(folder: str, trust_remote_code: bool) -> None:
    from peft import PeftModel
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSequenceClassification,
    )

    from verl_aiops.models.merger import is_classifier
    from verl_aiops.models.weights import MOST_OF_A_FILE

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    kind: type = AutoModelForCausalLM
    if any(str(name).endswith("ForConditionalGeneration") for name in config.architectures or ()):
        kind = AutoModelForImageTextToText  # few of these are causal language models too
    if is_classifier(config.architectures):
        kind = AutoModelForSequenceClassification
        # verl's merger calls every adapter a language model's, whose methods PEFT would look for
        settings = Path(folder, "lora_adapter", "adapter_config.json")
        named = read_object_file(settings) | {"task_type": None}
        settings.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
    base = kind.from_pretrained(folder, dtype="auto", trust_remote_code=trust_remote_code)
    merged = PeftModel.from_pretrained(base, os.path.join(folder, "lora_adapter")).merge_and_unload()
    merged.save_pretrained(folder, max_shard_size=MOST_OF_A_FILE)


def _checkpoint(where: str, path: str, place: Path, shards: list[Path]) -> ModelFolder:
    worlds = {int(_SHARD.fullmatch(file.name).group(1)) for file in shards}
    ranks = {int(_SHARD.fullmatch(file.name).group(2)) for file in shards}
    if len(worlds) > 1 or ranks != set(range(max(worlds))):
        raise ModelFolderError(
            f"{where}: the checkpoint is incomplete: shards of {max(worlds)} processes, but {len(ranks)} of their "
            "files. Copy all of model_world_size_*.pt into one folder."
        )
    for needed in (place / "fsdp_config.json", place / "huggingface" / "config.json"):
        if not needed.is_file():
            raise ModelFolderError(f"{where}: the checkpoint has no {needed.relative_to(place)}; copy it along.")
    _check_language_model(where, place / "huggingface")
    return ModelFolder(path, place / "huggingface", place, tuple(shards))


def _check_language_model(where: str, folder: Path) -> None:
    try:
        config = read_object_file(folder / "config.json")
        names = config.get("architectures") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise JsonFault("architectures", f"expected a list of names, found {brief(names, 60)}")
    except JsonFault as error:
        raise ModelFolderError(f"{where}: its config.json cannot be read: {error}") from None
    if names and not any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names):
        raise ModelFolderError(f"{where}: its architecture is {names[0]}, which writes no text. Name a language model.")


def _what_it_is(folder: Path) -> str:
    steps = sorted(entry.name for entry in folder.glob("global_step_*"))
    if steps:
        hint = " or huggingface" if (folder / "huggingface").is_dir() else ""
        return f"the folder of a run. Name one of its checkpoints{hint}: {', '.join(steps[-5:])}."
    if any((place / "dist_ckpt").is_dir() for place in (folder, folder / "actor", folder / "actor" / "model")):
        return (
            "a checkpoint of Megatron. Merge it with `python -m verl.model_merger merge --backend megatron` and name "
            "the result."
        )
    if (folder / "adapter_config.json").is_file():
        return "an adapter alone. Merge it with its base model and name the result."
    if (folder / "config.json").is_file():
        return "it has a config.json but no weights (*.safetensors, pytorch_model*.bin)."
    return "no config.json and no checkpoint of verl in it. Name a model's folder, or global_step_N of a run."
