"""What DPO with TRL starts from: a TRL that will do, the model, and whether the pairs fit it."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from verl_aiops.inputs.weights_file import cut_short
from verl_aiops.trl.dpo_data import highest_id, longest_pair
from verl_aiops.trl.dpo_settings import DPOTraining
from verl_aiops.trl.extra import TrainingError, in_a_line, require_trl

if TYPE_CHECKING:
    from verl_aiops.data import PreferenceDataset

__all__ = ["check_fit", "load_model", "require_recent_trl"]

# the first whose loss takes its log-probs from the model's own forward pass, which PairDPOTrainer looks at
OLDEST_TRL = "1.16"


def require_recent_trl() -> None:
    """Raises TrainingError if TRL or PEFT is missing, or TRL is too old."""
    require_trl()
    found = importlib.metadata.version("trl")
    if Version(found) < Version(OLDEST_TRL):
        too_old = f"trl {found} is installed, {OLDEST_TRL} or newer is needed"
        running = ".".join(map(str, sys.version_info[:2]))
        if Version(running) < Version("3.11"):
            raise TrainingError(f"{too_old}, which wants Python 3.11 or newer (this is {running}); train-rm works here")
        raise TrainingError(f'{too_old}: pip install -U "trl"')


def check_fit(settings: DPOTraining, train: PreferenceDataset, *val: PreferenceDataset) -> None:
    """Raises TrainingError if the pairs do not fit the batch, or the models as their configs tell them."""
    from transformers import AutoConfig

    if len(train) < settings.batch_size:
        raise TrainingError(
            f"--data holds {len(train)} usable pairs, fewer than one step (--batch-size {settings.batch_size})"
        )
    highest = highest_id(train, *val)
    for option, model in (("--model", settings.model), ("--reference-model", settings.reference_model)):
        if model is None:
            continue
        try:
            config = AutoConfig.from_pretrained(model).get_text_config()
        except Exception as error:  # whatever a folder or hub name without one raises
            raise TrainingError(f"{option} {model}: its config cannot be loaded: {in_a_line(error)}") from None
        longest, positions = longest_pair(train, *val), getattr(config, "max_position_embeddings", None)
        if positions and longest > positions:
            raise TrainingError(
                f"{option} {model}: a prompt with its answer has {longest} tokens, and the model {positions} "
                "positions; choose a smaller --max-prompt-length or --max-response-length"
            )
        if config.vocab_size <= highest:
            raise TrainingError(
                f"{option} {model}: the pairs hold the token {highest} of --model's tokenizer, and the model knows "
                f"{config.vocab_size} tokens; the two do not belong together"
            )


def load_model(settings: DPOTraining, name: str, option: str = "--model") -> Any:
    """Raises TrainingError if the folder or hub name ``name`` is no whole causal language model."""
    import torch
    from transformers import AutoModelForCausalLM

    if cut := cut_short(name):
        raise TrainingError(f"{option} {name}: {cut}")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, settings.dtype), output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"{option} {name} cannot be loaded as a causal language model: {in_a_line(error)}"
        ) from None
    if info["missing_keys"]:
        raise TrainingError(
            f"{option} {name} is no causal language model: it lacks {', '.join(sorted(info['missing_keys'])[:3])}"
        )
    return model
