"""Online DPO: what ``main_ppo`` runs for ``algorithm.adv_estimator=online_dpo``.

verl's rollouts, rewards and TransferQueue as they are; where PPO would compute advantages, the answers of each prompt
become pairs, and the pairs train the policy with the losses of offline DPO (Guo et al., arXiv 2402.04792).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ray
from omegaconf import DictConfig

from verl_aiops.losses import Labels, label_groups
from verl_aiops.rollout.rounds.stops import stop_ids
from verl_aiops.rollout.rounds.turns import TemplateTurns
from verl_aiops.seam import queue as tq
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.seam.queue import KVBatchMeta
from verl_aiops.seam.trainer import marked_timer
from verl_aiops.trainers.config import OnlineDPOConfig
from verl_aiops.trainers.dpo import examples as answer_rows
from verl_aiops.trainers.dpo.online_pairs import (
    Answer,
    agreed,
    labelled,
    laid_out,
    pair_example,
    plan_batch,
    prompt_of,
    self_play_pairs,
    shuffled,
)
from verl_aiops.trainers.dpo.pairs import arrange, pair_batch
from verl_aiops.trainers.dpo.training import PreferenceTraining
from verl_aiops.trainers.logprobs.support import choose_backend
from verl_aiops.trainers.preflight.defaults import data_parallel_size
from verl_aiops.trainers.rl.reward_rows import final_outputs, rows_of
from verl_aiops.trainers.rl.scored_trainer import ScoredTrainer, part_metrics
from verl_aiops.trainers.runs.resume import online_notes
from verl_aiops.trainers.worker.worker import PreferenceWorker

__all__ = ["OnlineDPOTrainer"]


@dataclass(frozen=True)
class _Step:
    """What `_compute_metrics` wants of the step that was just taken."""

    answers: list[Answer]
    labels: Labels
    pairs: list[tuple[Answer, Answer]]


class OnlineDPOTrainer(PreferenceTraining, ScoredTrainer):
    """Generate, score, pair, train; validation, checkpoints, weight transfer and trackers are verl's."""

    def __init__(self, config: DictConfig):
        self.dpo = OnlineDPOConfig.from_config(config)
        # as the user gave them, before verl fills in numbers
        self._note, self._reference_note = online_notes(config, self.dpo)
        super().__init__(config)
        self.use_critic = self.use_reference_policy = False
        self.ranks = data_parallel_size(config)
        self.backend, _ = choose_backend(config, self.dpo)
        self._last: _Step | None = None

    # --- set-up ------------------------------------------------------------------------------------------------------

    def _setup(self):
        self.check_resume()
        super()._setup()
        self.stops = stop_ids(self.config.actor_rollout_ref.model.path, self.tokenizer)
        template = dict(self.config.data.get("apply_chat_template_kwargs") or {})
        self._turns = TemplateTurns(self.tokenizer, chat_template_kwargs=template)

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        # the worker that can score with a reference's weights; the role and its resources stay
        self.role_worker_mapping = {role: ray.remote(PreferenceWorker) for role in self.role_worker_mapping}

    def _load_checkpoint(self):
        # the last part of verl's set-up, which cannot be had in pieces: until here the workers hold the initial policy
        self._begin_training()
        if self.dpo.uses_reference:
            self._keep_reference(is_lora=self.ref_in_actor, live=True)
        super()._load_checkpoint()

    def reference_note(self) -> dict:
        return self._reference_note

    # --- a step ------------------------------------------------------------------------------------------------------

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        self.drawn = sample_batch_size
        with marked_timer("gen", timing_raw, color="red"):
            self.on_sample_begin()
            batch, off_policy = self.replay_buffer.sample(
                global_steps=self.global_steps, partition_id="train", batch_size=sample_batch_size
            )
            metrics.update(off_policy)
            self.on_sample_end()
        if self.reward_loop_manager.reward_loop_worker_handles is None:
            with marked_timer("reward", timing_raw, color="yellow"):
                batch = self._compute_reward_colocate(batch, metrics=metrics)
        # for what it refuses, and what the reward manager keeps; the scores are read again, with the answers
        self._take_in(batch)
        with marked_timer("pairs", timing_raw):
            answers = self._answers(batch)
            if self.dpo.self_play:
                labels, pairs = self_play_pairs(answers, self._turns, self.stops)
            else:
                labels = self._label(answers)
                pairs = labelled(answers, labels)
            if self.dpo.members_agree:
                found, pairs = len(pairs), [pair for pair in pairs if agreed(*pair)]
                metrics["pairs/members_differ"] = float(found - len(pairs))
            self._last = _Step(answers, labels, pairs)
        metrics.update(self._pair_metrics(self._last))
        # a session whose reward (or generation) raised is missing from verl's batch without a word
        asked = sample_batch_size * self.config.actor_rollout_ref.rollout.n
        missing = max(0, asked - len(answers))
        metrics["pairs/failed_rows"] = float(labels.failed_rows + missing)
        self._check_failures(labels.failed_rows + missing, max(asked, len(answers)))
        if not pairs:
            # verl's loop clears TransferQueue by this batch's keys, so it goes back whole
            print(
                f"verl-aiops: step {self.global_steps}: no prompt has a preference, nothing is trained on", flush=True
            )
            return batch
        with marked_timer("update_actor", timing_raw, color="red"):
            metrics.update(self._train(pairs))
        self._move_reference(timing_raw)
        return batch

    def _answers(self, batch: KVBatchMeta) -> list[Answer]:
        """The final output of every session."""
        keys = final_outputs(batch.keys)
        fields = ["uid", "prompts", "responses", "response_mask", "rm_scores", "rollout_log_probs", "extra_fields"]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=[*fields, "extra_info"])
        columns = {name: rows_of(data[name]) for name in data.keys()}
        rows = [{name: column[at] for name, column in columns.items()} for at in range(len(keys))]
        # in an order that does not depend on which answer was finished first
        return sorted(
            (Answer.from_row(row) for row in rows),
            key=lambda a: (a.prompt_ids.numpy().tobytes(), a.response_ids.numpy().tobytes()),
        )

    def _label(self, answers: list[Answer]) -> Labels:
        scores = [a.score - self.dpo.eos_penalty * (not a.ended(self.stops)) for a in answers]
        return label_groups(
            scores,
            [a.uid for a in answers],
            rule=self.dpo.rule,
            min_gap=self.dpo.min_gap,
            answers=[a.content for a in answers],
            seed=self.global_steps,
        )

    def _check_failures(self, failed: int, asked: int) -> None:
        if failed == asked or failed / asked > self.dpo.max_failed_share:
            raise RuntimeError(
                f"{failed} of {asked} answers of step {self.global_steps} have no score (the reward or the generation "
                "failed, or the score is not finite), more than algorithm.online_dpo.max_failed_share="
                f"{self.dpo.max_failed_share} allows. The errors stand further up."
            )

    def _train(self, pairs: list[tuple[Answer, Answer]]) -> dict[str, float]:
        """One optimizer step per mini-batch and epoch; returns verl's metrics, averaged over them."""
        actor = self.config.actor_rollout_ref.actor
        plan = plan_batch(
            len(pairs),
            mini_pairs=actor.ppo_mini_batch_size,
            ranks=self.ranks,
            micro_pairs=actor.ppo_micro_batch_size_per_gpu or 1,
            dynamic=actor.use_dynamic_bsz,
        )
        # answers are sorted by prompt, whichever came first; mini-batches in that order would be of like prompts
        order = shuffled(pairs, seed=self.global_steps, room=-(-len(pairs) // -(-len(pairs) // plan.mini_pairs)))
        placed, counted = zip(*laid_out(pairs, order, plan), strict=True)
        examples = [pair_example(*pair, scored=self.dpo.score_margin > 0) for pair in placed]

        def cost(places: list[int]) -> int:
            rows = [row for at in places for row in answer_rows.rows_of(examples[at])]
            return answer_rows.tokens_seen(rows, shares=self.backend == "shared_prompt")

        tokens = [sum(len(a.prompt_ids) + len(a.response_ids) for a in pair) for pair in placed]
        # a prompt of another mini-batch is another: who is in which is decided
        prompts = [(at // plan.mini_pairs, prompt_of(pair)) for at, pair in enumerate(placed)]
        arranged = arrange(tokens, plan.mini_pairs, self.ranks, prompts=prompts, cost=cost)
        batch = pair_batch(
            [examples[at] for at in arranged],
            mini_pairs=plan.mini_pairs,
            counted=[counted[at] for at in arranged],
            behaviour=[tuple(a.rollout_logps for a in placed[at]) for at in arranged]
            if self.dpo.importance_clip
            else None,
            ranks=self.ranks,
            use_dynamic_bsz=actor.use_dynamic_bsz,
            micro_batch_size_per_gpu=plan.micro_pairs,
            max_token_len_per_gpu=actor.ppo_max_token_len_per_gpu,
            logprob_backend=self.backend,
        )
        if self.dpo.uses_reference:
            self._add_live_reference(batch)
        self._for_update(batch, mini_pairs=plan.mini_pairs, epochs=actor.ppo_epochs)
        named = self._worker_metrics(tu.get(self.actor_rollout_wg.update_actor(batch), "metrics"))
        if self.dpo.uses_reference and not self.dpo.self_play:
            # over answers that the policy sampled, the mean log-ratio estimates its KL divergence from the reference
            named["kl/reference"] = (named["rewards/chosen"] + named["rewards/rejected"]) / (2 * self.dpo.beta)
        return named

    # --- what is logged ----------------------------------------------------------------------------------------------

    def _pair_metrics(self, step: _Step) -> dict[str, float]:
        labels, pairs = step.labels, step.pairs
        values = {
            "pairs/used": float(len(pairs)),
            "pairs/ties": float(labels.ties),
            "pairs/identical": float(labels.identical),
            "pairs/single": float(labels.single),
            "pairs/prompts_with_pair": labels.groups_with_pair / max(1, labels.groups),
        }
        if pairs:
            chosen, rejected = ([pair[at] for pair in pairs] for at in (0, 1))
            scores = [float(np.mean([a.score for a in side])) for side in (chosen, rejected)]
            named = {"chosen": scores[0], "rejected": scores[1], "gap": scores[0] - scores[1]}
            # in self-play the data's own answer has no score
            values |= {f"score/{name}": score for name, score in named.items() if np.isfinite(score)}
            values |= {
                "length/chosen": float(np.mean([a.length for a in chosen])),
                "length/rejected": float(np.mean([a.length for a in rejected])),
            }
        return values

    def _compute_metrics(self, batch: KVBatchMeta, metrics, timing_raw, global_steps, epoch):
        step = self._last
        tokens = sum(len(a.prompt_ids) + len(a.response_ids) for a in step.answers)
        scores = [a.score for a in step.answers if np.isfinite(a.score)]
        metrics.update(
            {
                **self._loop_metrics(timing_raw, tokens, global_steps, epoch),
                "score/mean": float(np.mean(scores)) if scores else float("nan"),
                "response_length/mean": float(np.mean([len(a.response_ids) for a in step.answers])),
                "prompt_length/mean": float(np.mean([len(a.prompt_ids) for a in step.answers])),
                **part_metrics([a.extra for a in step.answers]),
            }
        )
