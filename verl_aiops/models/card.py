"""The card of an exported model: a README.md beside it that says of what data, settings and figures it came.

It is written from what the run itself was given and has logged. Files are named without their folders, which are
nobody's business where the model goes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_aiops.files import feed
from verl_aiops.inputs.shown import one_line

__all__ = ["CARD", "USE_CLASSIFIER", "Card", "card_text", "write_card"]

CARD = "README.md"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# settings that decide what was learned, beside those of the algorithm's own section
_SETTINGS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.train_max_samples",
    "trainer.total_epochs",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    *(f"actor_rollout_ref.actor.{name}" for name in ("ppo_mini_batch_size", "ppo_epochs", "clip_grad", "strategy")),
    *(
        f"actor_rollout_ref.actor.optim.{name}"
        for name in ("lr", "weight_decay", "lr_scheduler_type", "lr_warmup_steps")
    ),
    *(f"actor_rollout_ref.model.{name}" for name in ("lora_rank", "lora_alpha", "target_modules")),
    "actor_rollout_ref.model.lora.base_format",
)
_SAMPLED = ("actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.temperature")
_PACKAGES = ("verl-aiops", "verl", "torch", "transformers")
_MANY = 40


def write_card(folder: str | os.PathLike, config: DictConfig, step: str, metrics: str | os.PathLike | None) -> None:
    """Put the card into the folder of an exported model.

    Args:
        folder: of transformers; a card that is there is replaced.
        config: of the run.
        step: name of the checkpoint that the model was made from.
        metrics: what verl's file logger wrote of the run; None, or a file that is not there, where there is none.
    """
    Path(folder, CARD).write_text(card_text(config, step, metrics), encoding="utf-8")


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        method: how the model was trained: ``dpo``, ``sft``, ...
        base: folder or hub name of the model that training started from.
        made: a sentence that says what wrote the weights.
        trained_on, held_out: the data files.
        settings: by name, those that decide what was learned.
        metrics: what the run has logged of its validations, a line a step; None where there is none.
        figures: by name, numbers of held-out data that stand in no such file.
        tags: beside the method's and ours.
        packages: whose versions are told.
    """

    method: str
    base: str
    made: str
    trained_on: Any = None
    held_out: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: str | os.PathLike | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ("verl",)
    packages: tuple[str, ...] = _PACKAGES
    use: tuple[str, ...] = ()

    def text(self) -> str:
        """Markdown, with the front matter that hubs read."""
        tags = [json.dumps(self.method), *self.tags, "verl-aiops"]
        lines = ["---", "library_name: transformers", f"tags: [{', '.join(tags)}]"]
        if _HUB_NAME.fullmatch(self.base) and not os.path.isdir(self.base):
            lines.append(f"base_model: {json.dumps(self.base)}")
        lines += ["---", "", f"# {_plain(Path(self.base).name)}, trained by {_plain(self.method)}", "", self.made]
        versions = [f"{name} {version}" for name in self.packages if (version := _version(name))]
        lines += [f"Versions: {', '.join(versions)}.", "", "## Data", ""]
        for what, files in (("trained on", self.trained_on), ("held out", self.held_out)):
            lines += [f"- {what}: {name}" for name in _data_files(files)]
        lines += ["", "## Settings", "", "| key | value |", "| --- | --- |"]
        lines += [f"| {_code(key)} | {_code(value)} |" for key, value in self.settings.items()]
        lines += ["", "## Figures", "", *self._figures(), "", "## Use", "", *(self.use or _USE), ""]
        return "\n".join(lines)

    def write(self, folder: str | os.PathLike) -> None:
        """Into the folder of an exported model; a card that is there is replaced."""
        Path(folder, CARD).write_text(self.text(), encoding="utf-8")

    def _figures(self) -> list[str]:
        if not self.figures:
            return _figures(self.metrics)
        rows = [f"| {_code(name)} | {value:.6g} |" for name, value in self.figures.items()]
        return ["Held-out data.", "", "| | |", "| --- | ---: |", *rows]


def card_text(config: DictConfig, step: str, metrics: str | os.PathLike | None = None) -> str:
    """The card of a run of verl's main_ppo; see `write_card`."""
    method = str(OmegaConf.select(config, "algorithm.adv_estimator", default=None) or "?")
    made = f"Made from the checkpoint {_code(step)} of a run of verl with verl-aiops. The weights are bfloat16."
    return Card(
        method,
        str(OmegaConf.select(config, "actor_rollout_ref.model.path", default=None) or "?"),
        made,
        OmegaConf.select(config, "data.train_files", default=None),
        OmegaConf.select(config, "data.val_files", default=None),
        _settings(config, method),
        metrics,
        use=USE_CLASSIFIER if method == "rm" else (),
    ).text()


_USE = (
    "```python",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")',
    "```",
)
USE_CLASSIFIER = tuple(line.replace("AutoModelForCausalLM", "AutoModelForSequenceClassification") for line in _USE)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: object) -> str:
    """Text of others in a line of Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", one_line(value))


def _code(value: object) -> str:
    """The same as code, in a cell of a table as well."""
    return f"`{one_line(value).replace('`', chr(39)).replace('|', '/')}`"


def _data_files(named: Any) -> list[str]:
    paths = [] if named is None else [named] if isinstance(named, str) else list(named)
    return [_data_file(os.path.expanduser(str(path))) for path in paths]


def _data_file(path: str) -> str:
    name = _code(Path(path).name)
    try:
        digest = hashlib.sha256()
        feed(digest, path)
        return f"{name}, {os.path.getsize(path):,} bytes, sha256 {digest.hexdigest()}"
    except OSError:  # a file of a hub or an object store
        return name


def _settings(config: DictConfig, method: str) -> dict[str, Any]:
    section = OmegaConf.select(config, f"algorithm.{method}", default=None)
    own = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else {}
    found = {f"algorithm.{method}.{key}": value for key, value in own.items() if not key.endswith(("_path", "_dir"))}
    found |= {
        key: OmegaConf.select(config, key, default=None)
        for key in (*_SETTINGS, *(() if method in ("dpo", "rm") else _SAMPLED))
    }
    if not found.get("actor_rollout_ref.model.lora_rank"):
        found = {key: value for key, value in found.items() if not key.endswith((".lora_alpha", ".target_modules"))}
    return {key: value for key, value in found.items() if value is not None}


def _figures(metrics: str | os.PathLike | None) -> list[str]:
    """A table of the first and the last validation, or the word that there was none."""
    rows = _validations(metrics)
    if not rows:
        return ["None: nothing held out was validated, or the run kept no `metrics.jsonl` (`trainer.logger`)."]
    (first_step, first), (last_step, last) = rows[0], rows[-1]
    names = [name for name in last if name in first][:_MANY]
    lines = [f"Held-out data, as the run logged them at step {first_step} and at step {last_step}.", ""]
    lines += [f"| | step {first_step} | step {last_step} |", "| --- | ---: | ---: |"]
    return lines + [f"| {_code(name)} | {first[name]:.6g} | {last[name]:.6g} |" for name in names]


def _validations(metrics: str | os.PathLike | None) -> list[tuple[int, Mapping[str, float]]]:
    if metrics is None or not os.path.isfile(metrics):
        return []
    found = []
    with open(metrics, encoding="utf-8", errors="replace") as file:
        for step, data in _logged(file):
            values = {
                str(name): float(value)
                for name, value in data.items()
                if str(name).startswith("val") and isinstance(value, int | float) and math.isfinite(value)
            }
            if values:
                found.append((step, values))
    return found


def _logged(lines: Iterable[str]) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for line in lines:
        try:
            row = json.loads(line)
            step, data = int(row["step"]), row["data"]
        except (ValueError, TypeError, KeyError):
            continue  # cut short, or not the logger's
        if isinstance(data, dict):
            yield step, data
