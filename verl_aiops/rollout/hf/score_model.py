"""A discriminative reward model as transformers has it: token ids in, one number each out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from verl_aiops.inputs.weights_file import cut_short
from verl_aiops.models.company import company_of, depends, forget_lengths

__all__ = ["ScoreModel"]


class ScoreModel:
    """A sequence classifier with one label, and the score it gives to the last token of each input.

    transformers finds that token by comparing ids with the padding token's, which is wrong where padding is the token
    that ends a turn; here it is counted. Encoders, which score their first token, are left to transformers.

    Args:
        folder: of the model: configuration and weights.
        dtype: of the weights; the score head computes in float32.

    Raises:
        ValueError: more labels than one, a head that the folder has no weights for, or an encoder-decoder.
    """

    def __init__(self, folder: str, dtype: torch.dtype, device: str | int, trust_remote_code: bool = False):
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if config.num_labels != 1:
            raise ValueError(
                f"reward model {folder}: {config.num_labels} labels; a reward model has one (num_labels=1 when its "
                "AutoModelForSequenceClassification is made)"
            )
        if config.is_encoder_decoder:
            raise ValueError(f"reward model {folder}: the rollout hf serves decoders and encoders, not both in one")
        if cut := cut_short(folder):
            raise ValueError(f"reward model {folder}: {cut}")
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(
                f"reward model {folder}: no weights for {', '.join(missing[:3])}; a model without a trained score "
                "head gives random scores"
            )
        self.positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.device = device
        self.model = model.eval().to(device)
        self.scores_last_token = hasattr(model, "score")
        if self.scores_last_token:
            # one number per input: in bfloat16 it would have three digits, and equal ones would be many
            model.score.float()

    def to(self, device: str | int) -> None:
        self.model.to(device)

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        """Raw scores, float32, shape (inputs,), on the CPU; the inputs are token ids, none of them empty."""
        company = company_of(self.model)
        if company.together is None:
            company.together = not self._depends()
        scores = torch.empty(len(inputs))
        for rows in company.groups([len(ids) for ids in inputs]):
            if company.each_length:
                forget_lengths(self.model)
            scores[rows] = self._scores([inputs[row] for row in rows])
        return scores

    def _depends(self) -> bool:
        """Try a short input alone and beside a long one."""
        most = min(self.vocabulary, 1000)
        short, long = ([at % most for at in range(length)] for length in (7, 23))
        name = f"reward models of type {self.model.config.model_type!r}"
        dtype = self.model.dtype
        return depends(name, lambda: self._scores([short]), lambda: self._scores([short, long])[:1], dtype)

    def _scores(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        lengths = torch.tensor([len(ids) for ids in inputs])
        # what stands behind an input is masked, so any id will do
        tokens = torch.zeros(len(inputs), int(lengths.max()), dtype=torch.long)
        for row, ids in enumerate(inputs):
            tokens[row, : len(ids)] = torch.tensor(ids)
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        batch = {"input_ids": tokens.to(self.device), "attention_mask": mask.to(self.device)}
        if not self.scores_last_token:
            return self.model(**batch).logits[:, 0].float().cpu()
        hidden = self.model.base_model(**batch, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(inputs)), lengths - 1]
        return self.model.score(last.float())[:, 0].cpu()
