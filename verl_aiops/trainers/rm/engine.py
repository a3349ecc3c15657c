"""verl's FSDP engine for reward models: a classifier with one label, and the score of each answer's last token."""

from __future__ import annotations

import torch

from verl_aiops.trainers.rm.scores import SCORE_BACKENDS
from verl_aiops.trainers.worker.engine import FSDPPreferenceEngine

__all__ = ["FSDPRewardEngine"]


class FSDPRewardEngine(FSDPPreferenceEngine):
    """`FSDPPreferenceEngine` whose model output is ``answer_scores``, nested (rows, 1), float32."""

    _gives = "answer_scores"
    _backends = SCORE_BACKENDS

    def _build_module(self):
        """The classifier: verl's own builds language models and critics, which have a head at every token.

        A model folder without a score head gets one that is drawn from ``fsdp_config.seed``.
        """
        from transformers import AutoModelForSequenceClassification
        from verl.utils.fsdp_utils import get_init_weight_context_manager

        from verl_aiops.seam.engine import PrecisionType

        config = self.model_config.hf_config
        config.num_labels = 1
        dtype = PrecisionType.to_dtype(self.engine_config.model_dtype or torch.float32)
        init = get_init_weight_context_manager(use_meta_tensor=not config.tie_word_embeddings, mesh=self.device_mesh)
        with init(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.engine_config.seed)
            module = AutoModelForSequenceClassification.from_pretrained(
                self.model_config.local_path,
                dtype=dtype,
                config=config,
                trust_remote_code=self.model_config.trust_remote_code,
            )
        module.to(dtype)
        text = module.config.get_text_config()
        if text.pad_token_id is None:
            # transformers wants one for rows side by side. Which it is decides nothing, as the embedding, in which it
            # would have no gradient, is made
            text.pad_token_id = 0
        # what is saved beside the weights names the class that reads them
        module.config.architectures = [next(c.__name__ for c in type(module).__mro__ if "transformers" in c.__module__)]
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return module

    def _with_adapters(self, module):
        """Adapters of all linear layers but the score head, which is trained whole: it is new."""
        from peft import LoraConfig, get_peft_model

        from verl_aiops.seam.engine import convert_to_regular_types

        module.enable_input_require_grads()
        plain = {
            name: convert_to_regular_types(getattr(self.model_config, name))
            for name in ("target_modules", "target_parameters", "exclude_modules")
        }
        left_out = plain["exclude_modules"]
        if not isinstance(left_out, str):
            plain["exclude_modules"] = [*(left_out or ()), "score"]
        module = get_peft_model(
            module,
            # no task: PEFT would copy the head of a classifier, under a name that verl's merger does not know
            LoraConfig(r=self.model_config.lora_rank, lora_alpha=self.model_config.lora_alpha, bias="none", **plain),
        )
        module.get_base_model().score.requires_grad_(True)
        dtype = next(p.dtype for p in module.parameters() if not p.requires_grad)
        for parameter in module.parameters():
            if parameter.requires_grad:
                # FSDP wants one type of all that it keeps together
                parameter.data = parameter.data.to(dtype)
        return module
