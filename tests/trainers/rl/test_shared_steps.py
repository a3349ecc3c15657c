"""Steps of the trainer on an actor that shares prompts: the order of rows, the passes, what is logged. Workers are
fakes; the trainer's parts, and verl's beneath them, are not."""

import warnings

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from prepared import composed
from stock_runs import GRPO
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from verl_aiops.trainers.batch import ENTROPY_IS_LOGGED, ROWS_LOG_PROBS
from verl_aiops.trainers.rl import shared_steps
from verl_aiops.trainers.rl.scored_trainer import ScoredTrainer
from verl_aiops.trainers.rl.shared_steps import why_old_log_probs

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
SHARED = ["+algorithm.logprob_backend=shared_prompt"]
# 16 prompts, 4 answers to each
N4 = [f"{ROLLOUT}.n=4", "trainer.critic_warmup=0"]


def configuration(*overrides):
    return composed(*GRPO, *N4, *overrides)


class Workers:
    """What a worker group is asked for, and what the engine's metrics of an update are."""

    def __init__(self, ranks=1):
        self._dispatch_info = {"actor": list(range(ranks))}
        self.updates, self.scored = [], 0

    def update_actor(self, batch):
        self.updates.append(dict(batch.extra_info))
        metrics = {"mfu": [0.1], "actor/pg_loss": [0.5], "ppo_kl": [0.0], "pg_clipfrac": [0.0], "grad_norm": [1.0]}
        if batch.extra_info["calculate_entropy"]:
            metrics["actor/entropy_loss"] = [3.0]
        if batch.extra_info.get(ROWS_LOG_PROBS):
            # as Ray brings them
            rows = [np.full(tag["response_len"], -1.0, np.float32) for tag in batch.tags]
            for row in rows:
                row.flags.writeable = False
            metrics[ROWS_LOG_PROBS] = rows
        metrics |= {"shared_tokens_ratio": [0.25, 0.35], "torn_prompts": [1.0, 0.0]}
        return tu.get_tensordict({}, non_tensor_dict={"metrics": metrics})


def trainer(*overrides, ranks=1):
    made = object.__new__(ScoredTrainer)
    made.config = configuration(f"trainer.n_gpus_per_node={ranks}", *overrides)
    made.global_steps, made.use_critic, made.tokenizer = 1, False, type("Tokenizer", (), {"eos_token_id": 2})
    made.actor_rollout_wg = Workers(ranks)
    return made


def batch(prompts=16, n=4):
    """Rows as they come: answers that were done first stand first."""
    keys = [f"{uid}_{session}_0" for session in range(n) for uid in range(prompts)]
    tags = []
    for at, key in enumerate(keys):
        prompt, answer = 100 + int(key.partition("_")[0]) * 37 % 300, 20 + 13 * at % 90
        tags.append({"prompt_len": prompt, "response_len": answer, "seq_len": prompt + answer})
    return KVBatchMeta(keys, tags, "train")


def balanced(made, rows):
    metrics = {}
    # beneath the look for rewards, which is another's test
    return super(ScoredTrainer, made)._balance_batch(rows, metrics), metrics


def uids(keys):
    return [key.partition("_")[0] for key in keys]


@pytest.mark.parametrize("backend", [[], ["+algorithm.logprob_backend=stock"]])
@pytest.mark.parametrize("ranks", [1, 2])
def test_without_the_backend_rows_passes_and_metrics_are_verls(backend, ranks, monkeypatch):
    made, verls = trainer(*backend, ranks=ranks), object.__new__(PPOTrainerSync)
    rows, metrics = balanced(made, batch())
    expected, theirs = batch(), {}
    vars(verls).update(vars(made))
    expected = verls._balance_batch(expected, theirs)
    assert (rows.keys, metrics) == (expected.keys, theirs)
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: "verl's")
    assert made._compute_old_log_prob(rows, {}) == "verl's"
    made._update_actor(rows, metrics)
    assert made.actor_rollout_wg.updates[0]["calculate_entropy"] is False
    # of an engine that shares all the same, as its own command line may ask: under the names that it gives
    assert "actor/shared_tokens_ratio" in metrics and "perf/torn_prompts" not in metrics


@pytest.mark.parametrize("ranks, mini", [(1, 16), (2, 16), (4, 16), (2, 8), (4, 4), (2, 4)])
def test_a_prompts_answers_are_on_one_worker_in_one_mini_batch(ranks, mini):
    made = trainer(*SHARED, f"{ACTOR}.ppo_mini_batch_size={mini}", ranks=ranks)
    rows, metrics = balanced(made, batch())
    assert sorted(rows.keys) == sorted(batch().keys)
    size = mini * 4 // ranks
    parts = [uids(rows.keys[at : at + size]) for at in range(0, 64, size)]
    assert sum(len(set(part)) for part in parts) == 16
    # the tags went with the keys
    assert {key: tag["prompt_len"] for key, tag in zip(rows.keys, rows.tags)} == {
        key: tag["prompt_len"] for key, tag in zip(batch().keys, batch().tags)
    }
    share = [sum(tag["seq_len"] for tag in rows.tags[at : at + 64 // ranks]) for at in range(0, 64, 64 // ranks)]
    assert metrics["global_seqlen/balanced_max"] == max(share) and metrics["global_seqlen/balanced_min"] == min(share)


def test_workers_are_balanced_by_tokens_that_the_model_sees():
    """A long prompt weighs as much as long answers; by its answers alone it would go where theirs are."""
    made = trainer(*SHARED, f"{ROLLOUT}.n=2", f"{ACTOR}.ppo_mini_batch_size=4", ranks=2)
    lengths = {"a": (1000, 1), "b": (1, 500), "c": (1, 3), "d": (1, 2)}
    keys = [f"{uid}_{session}_0" for uid in lengths for session in range(2)]
    tags = [dict(zip(("prompt_len", "response_len"), lengths[key[0]]), seq_len=sum(lengths[key[0]])) for key in keys]
    rows, _ = balanced(made, KVBatchMeta(keys, tags, "train"))
    halves = [set(uids(rows.keys[at : at + 4])) for at in (0, 4)]
    assert not any({"a", "b"} <= half for half in halves)


def test_old_log_probs_are_left_to_the_only_update_which_says_so_once(monkeypatch, capsys):
    made = trainer(*SHARED)
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda *_: pytest.fail("a pass that nobody needs"))
    rows, _ = balanced(made, batch())
    for made.global_steps in (1, 2):
        assert made._compute_old_log_prob(rows, {}) is rows
    said = capsys.readouterr().out
    assert said == "verl-aiops: from step 1 on: old log-probs are those of the update itself: no pass of their own\n"


@pytest.mark.parametrize(
    "override, named",
    [
        ("algorithm.rollout_correction.rollout_is=token", "rollout_correction.rollout_is"),
        ("algorithm.rollout_correction.rollout_rs=token_k1", "rollout_correction.rollout_rs"),
        ("algorithm.rollout_correction.bypass_mode=True", "bypass_mode=True"),
        ("algorithm.use_kl_in_reward=True", "use_kl_in_reward=True"),
        (f"{ACTOR}.ppo_epochs=2", "ppo_epochs=2"),
        (f"{ACTOR}.ppo_mini_batch_size=8", "64 rows in mini-batches of actor_rollout_ref.actor.ppo_mini_batch_size=8"),
        ("algorithm.adv_estimator=optimal_token_baseline", "adv_estimator=optimal_token_baseline"),
        (f"{ACTOR}.calculate_sum_pi_squared=True", "calculate_sum_pi_squared=True"),
        ("distillation.enabled=True", "distillation.enabled=True"),
    ],
)
def test_who_needs_old_log_probs_gets_them_and_is_named(override, named, monkeypatch, capsys):
    made = trainer(*SHARED, override)
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: "verl's")
    assert made._compute_old_log_prob(batch(), {}) == "verl's"
    assert named in capsys.readouterr().out
    assert named in why_old_log_probs(made.config)


def test_rows_that_fill_the_batch_up_and_steps_of_the_critic_alone_are_verls(monkeypatch, capsys):
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: "verl's")
    rows = batch()
    rows.tags[-1]["is_padding"] = True
    assert trainer(*SHARED)._compute_old_log_prob(rows, {}) == "verl's"
    assert "fill the batch up" in capsys.readouterr().out
    assert trainer(*SHARED, "trainer.critic_warmup=2")._compute_old_log_prob(batch(), {}) == "verl's"


def test_estimators_that_read_old_log_probs_are_those_that_are_named():
    """verl's `compute_advantage` hands them on by name; its trainer reads them for nothing else."""
    import inspect

    from verl.trainer.ppo import core_algos

    from verl_aiops.trainers.rl.shared_steps import READ_OLD_LOG_PROBS

    reading = {
        name
        for name, function in core_algos.ADV_ESTIMATOR_REGISTRY.items()
        if "old_log_probs" in inspect.signature(function).parameters
    }
    assert reading == set(READ_OLD_LOG_PROBS)


UNCOMPARED = [*SHARED, f"{ROLLOUT}.calculate_log_probs=False"]


def test_the_entropy_of_the_pass_that_was_left_out_is_that_of_the_update():
    made, metrics = trainer(*UNCOMPARED), {}
    rows, _ = balanced(made, batch())
    made._compute_old_log_prob(rows, metrics)
    made._update_actor(rows, metrics)
    assert made.actor_rollout_wg.updates[0]["calculate_entropy"] is True
    assert made.actor_rollout_wg.updates[0][ENTROPY_IS_LOGGED] is True
    assert metrics["actor/entropy"] == 3.0 and "actor/entropy_loss" not in metrics
    assert made.config.actor_rollout_ref.actor.calculate_entropy is False
    assert {"actor/ppo_kl", "actor/pg_clipfrac", "actor/pg_loss", "actor/grad_norm"} <= metrics.keys()
    with open_dict(made.config):
        made.config.actor_rollout_ref.actor.entropy_coeff = 0.1
    metrics = {}
    made._update_actor(rows, metrics)
    assert metrics["actor/entropy_loss"] == metrics["actor/entropy"] == 3.0
    assert made.actor_rollout_wg.updates[1][ENTROPY_IS_LOGGED] is False
    assert not any(update.get(ROWS_LOG_PROBS) for update in made.actor_rollout_wg.updates)


@pytest.fixture
def no_warning():
    """None is left out because torch gave it before."""
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("no_warning")
def test_what_verl_compares_with_the_rollout_is_compared_with_the_update(monkeypatch):
    """The rollout said -1.5 of each token, the update -1."""
    made, metrics = trainer(*SHARED), {}
    rows, _ = balanced(made, batch())
    seen = []

    def get(keys, partition_id, select_fields):
        lengths = [tag["response_len"] for tag in rows.tags]
        assert keys == rows.keys
        columns = {
            "responses": [torch.ones(n, dtype=torch.int64) for n in lengths],
            # the last token of each answer is the rounds' instruction, where a rollout has no log-prob
            "response_mask": [torch.tensor([1] * (n - 1) + [0]) for n in lengths],
            "rollout_log_probs": [torch.tensor([-1.5] * (n - 1) + [0.0]) for n in lengths],
        }
        seen.append(select_fields)
        nested = {n: torch.nested.as_nested_tensor(column, layout=torch.jagged) for n, column in columns.items()}
        return tu.get_tensordict({name: nested[name] for name in select_fields})

    monkeypatch.setattr(shared_steps.tq, "kv_batch_get", get)
    workers = made.actor_rollout_wg
    made._compute_old_log_prob(rows, metrics)
    made._update_actor(rows, metrics)
    assert made.actor_rollout_wg is workers and seen
    assert metrics["training/rollout_probs_diff_mean"] == pytest.approx(np.exp(-1) - np.exp(-1.5), abs=1e-6)
    assert metrics["training/rollout_probs_diff_max"] == pytest.approx(np.exp(-1) - np.exp(-1.5), abs=1e-6)
    assert metrics["rollout_corr/kl"] == pytest.approx(-0.5) and metrics["rollout_corr/training_log_ppl"] == 1.0
    assert not [name for name in metrics if ROWS_LOG_PROBS in name]


def test_advantages_do_not_look_for_log_probs_that_are_not_there(monkeypatch):
    made = trainer(*SHARED)
    seen = []
    monkeypatch.setattr(
        PPOTrainer, "_compute_advantage", lambda self, *_: seen.append(self.config.algorithm.rollout_correction)
    )
    for made._old_by_update in (True, False):
        made._compute_advantage(batch(), {})
    assert seen[0] is None and seen[1] == made.config.algorithm.rollout_correction is not None


def test_what_was_shared_and_what_was_torn_are_logged_under_one_name_each():
    made, metrics = trainer(*SHARED, f"{ACTOR}.ppo_mini_batch_size=8", ranks=2), {}
    rows, _ = balanced(made, batch())
    made._old_by_update = False
    made._update_actor(rows, metrics)
    # the mean of two mini-batches; and both of them together
    assert metrics["perf/shared_tokens_ratio"] == pytest.approx(0.3) and metrics["perf/torn_prompts"] == 1.0
    # verl's count of the work is of rows
    assert metrics["perf/mfu/actor"] == pytest.approx(0.1 * 0.3)
    assert not [name for name in metrics if name in ("actor/shared_tokens_ratio", "actor/torn_prompts")]
    assert "actor/entropy" not in metrics


def test_prompts_that_cuts_tear_are_counted_with_those_that_micro_batches_tear():
    made, metrics = trainer(*SHARED, f"{ROLLOUT}.n=1", f"{ACTOR}.ppo_mini_batch_size=4", ranks=2), {}
    rows, _ = balanced(made, batch(prompts=1, n=8))
    assert len(rows) == 8
    made._update_actor(rows, metrics)
    # one prompt in four parts comes three times again; and 0.5 in each of two mini-batches
    assert metrics["perf/torn_prompts"] == 4.0


def test_the_critics_worker_has_the_engine_that_its_key_names(monkeypatch):
    import ray
    from verl.trainer.ppo.utils import Role
    from verl.workers.config import TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    from verl_aiops.trainers.rl.resumed_workers import ResumedActor, ResumedCritic, SharedCritic

    def fill(self):
        self.role_worker_mapping = {Role.ActorRollout: "verl's", Role.Critic: "verl's"}

    monkeypatch.setattr(PPOTrainerSync, "_init_resource_pool_mgr", fill)
    monkeypatch.setattr(ray, "remote", lambda cls: cls)
    for key, critic in (([], ResumedCritic), (["+algorithm.critic_backend=shared_prompt"], SharedCritic)):
        made = trainer(*key, f"{ACTOR}.strategy=fsdp2")
        made._init_resource_pool_mgr()
        assert made.role_worker_mapping == {Role.ActorRollout: ResumedActor, Role.Critic: critic}
    seen = []
    monkeypatch.setattr(TrainingWorker, "__init__", lambda self, config: seen.append(config))
    config = TrainingWorkerConfig(model_type="value_model")
    SharedCritic(config=config)
    assert seen[0].model_type == "shared_prompt_value_model" and config.model_type == "value_model"
    assert issubclass(SharedCritic, ResumedCritic)
