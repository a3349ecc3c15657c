"""verl's merger of FSDP shards, for reward models too."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from transformers import AutoModelForSequenceClassification

from verl_aiops.models.weights import MOST_OF_A_FILE
from verl_aiops.seam.engine import FSDPModelMerger

__all__ = ["ModelMerger", "is_classifier"]


def is_classifier(architectures: Iterable[str] | None) -> bool:
    """Whether a configuration's ``architectures`` are those of a reward model: a classifier of sequences."""
    return any(str(name).endswith("ForSequenceClassification") for name in architectures or ())


class ModelMerger(FSDPModelMerger):
    """Writes a checkpoint's shards as a folder of transformers: language models and critics as verl does, and
    classifiers of sequences, which verl's does not know."""

    def get_transformers_auto_model_class(self):
        if is_classifier(self.model_config.architectures):
            return AutoModelForSequenceClassification
        return super().get_transformers_auto_model_class()

    def patch_model_generation_config(self, model):
        """The model is at hand here alone before verl's `save_hf_model_and_tokenizer` saves it, with no word about the
        size of files."""
        model = super().patch_model_generation_config(model)
        model.save_pretrained = functools.partial(model.save_pretrained, max_shard_size=MOST_OF_A_FILE)
        return model
