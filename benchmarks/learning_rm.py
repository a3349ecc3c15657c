"""Reward models on incidents' pairs and groups, ours and TRL's, and online DPO by rule, model, ensemble and judge.

    python benchmarks/learning_rm.py --incidents incidents.jsonl --model models/SmolLM2-135M-Instruct --out runs/rm \\
        --minutes 9.5
    python benchmarks/learning_rm.py --model TINY --device cpu --size tiny --out /tmp/tiny   # all commands, no learning

Reward models of several seeds: ours on pairs and on ranked groups, TRL's on the same pairs, all weights trained, and
how each ranks held-out pairs (`verl-aiops eval --rm`, intervals over faults). Then online DPO from one policy (SFT on
the chosen answers) on the same prompts and seed, which differs in who says what is better: the rule, the reward model,
the ensemble of all seeds (mean less a standard deviation, pairs on which all agree), or a language model as the judge
(`learning_judge.py`, behind SGLang). Jobs run side by side; the same command goes on where it was ended.

    OUT/learning_rm.json, learning_rm.png, metrics/NAME.jsonl.gz; WORK (default OUT/work) may be deleted
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import learning_stages
from learning_jobs import Job, Runner, key_of
from learning_judge import REWARD, write_lessons
from learning_recipe import STAGES
from learning_rm_result import finish
from learning_servers import free_port, serving
from learning_stages import train_command

HERE = Path(__file__).parent
SIGNALS = ("rule", "rm", "ensemble", "judge")
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "build": "--val-share 0.2 --max-chars 500 --max-candidates 5 --max-quotes 2 --quote-chars 80",
        "per_incident": 4,
        "simulate": 600,
        "rm": {"batch": 16, "lr": 2e-5, "epochs": 1},
        "sft": {"batch": 32, "lr": 2e-4, "steps": None},
        "judge": {"batch": 32, "lr": 2e-4, "steps": None},
        "online": {"batch": 8, "n": 8, "lr": 2e-6, "steps": 48, "micro-batch": 8},
        "tokens": 64,
        "ask": 200,
        "n": 8,
    },
    "tiny": {
        "build": "--val-share 0.3 --max-chars 200 --max-candidates 3 --max-quotes 1 --quote-chars 40",
        "per_incident": 2,
        "simulate": 24,
        "rm": {"batch": 4, "lr": 1e-3, "epochs": 1},
        "sft": {"batch": 4, "lr": 1e-2, "steps": 3},
        "judge": {"batch": 4, "lr": 1e-3, "steps": 1},
        "online": {"batch": 2, "n": 2, "lr": 1e-4, "steps": 2, "micro-batch": 2},
        "tokens": 24,
        "ask": 4,
        "n": 2,
    },
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--incidents", metavar="FILE", help="incidents, JSONL (default: simulated)")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder of the model to start from")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, metavar="DIR", help="data, checkpoints and logs (default OUT/work)")
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="tiny: every command in seconds")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="reward models of each kind (default 3)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--per-gpu", type=int, default=5, metavar="N", help="jobs on the GPU at a time (default 5)")
    parser.add_argument("--minutes", type=float, metavar="M", help="end after so long, with what there is")
    parser.add_argument("--only", metavar="J,J", help="jobs whose name begins so, with what they need")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.work = (arguments.work or arguments.out / "work").resolve()
    arguments.model = arguments.model.resolve()
    return arguments


def main() -> int:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    planned = jobs = Plan(arguments).jobs()
    if arguments.only:
        from learning import chosen

        jobs = chosen(planned, arguments.only.split(","))
    devices: Sequence[int | None] = [None] if arguments.device == "cpu" else [0] * arguments.per_gpu
    runner = Runner(arguments.work, devices, host=1, minutes=arguments.minutes)
    try:
        runner.run(jobs)
    finally:
        runner.end()
    runner.note_done(planned)
    for name, why in runner.failed.items():
        print(f"not done: {name}: {why.splitlines()[0]}", file=sys.stderr)
    finish(arguments, runner, SIZES[arguments.size], of_these_settings(planned, arguments.work))
    return 1 if runner.failed else 0


def of_these_settings(jobs: Sequence[Job], work: Path) -> set[str]:
    """Names of the jobs whose folder is of their settings, done or not: what is left of others is no result."""
    named = {job.name: job for job in jobs}
    keys = {name: work / name / "key" for name in named}
    return {name for name, key in keys.items() if key.is_file() and key.read_text() == key_of(named[name], named)}


class Plan:
    """The jobs; each one's files are in its folder of WORK."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.work, self.device = arguments, arguments.work, arguments.device
        self.size = SIZES[arguments.size]
        self.data = self.work / "data"

    def jobs(self) -> list[Job]:
        seeds = range(self.arguments.seeds)
        made = [self._job("data", self._data, (), on_device=False)]
        made += [self._job("policy", self._policy, ("data",)), self._job("judge", self._judge, ("data",))]
        made += [self._job(f"pairs-s{seed}", self._ours, ("data",), seed=seed) for seed in seeds]
        models = [f"pairs-s{seed}" for seed in seeds]
        needs = {"rule": (), "rm": models[:1], "ensemble": models, "judge": ("judge",)}
        # the long ones before what nothing waits for
        made += [self._job(f"online-{by}", self._online, ("data", "policy", *needs[by]), by=by) for by in SIGNALS]
        made += [self._job(f"trl-s{seed}", self._trl, ("data",), seed=seed) for seed in seeds]
        made += [self._job(f"groups-s{seed}", self._ours, ("data",), seed=seed) for seed in seeds]
        made.append(self._job("best-of-n", self._best_of_n, ("data", "policy", models[0])))
        return made

    def _job(self, name: str, do: Callable, needs: Sequence[str], on_device: bool = True, **more: Any) -> Job:
        settings = {**self.size, "incidents": self.arguments.incidents, "model": str(self.arguments.model), **more}
        return Job(name, lambda folder, run: do(name, folder, run, **more), settings, tuple(needs), on_device)

    # --- data, policy and judge ---------------------------------------------------------------------------------------

    def _data(self, name: str, folder: Path, run: Callable) -> None:
        incidents = self.arguments.incidents or folder / "incidents.jsonl"
        if not self.arguments.incidents:
            count = ["--num-incidents", self.size["simulate"], "--difficulty", "mix"]
            verl_aiops(run, "simulate", "--out", incidents, *count)
        build = ["--incidents", Path(incidents).resolve(), "--style", "direct", *self.size["build"].split()]
        pairs = ["--pairs-per-incident", self.size["per_incident"]]
        verl_aiops(run, "build-prefs", *build, *pairs, "--out", folder / "pairs.parquet")
        verl_aiops(run, "build-prefs", *build, *pairs, "--groups", "--out", folder / "groups.parquet")
        verl_aiops(run, "build-rl", *build, "--out", folder / "rl.parquet")
        write_lessons(folder / "pairs.parquet", folder / "lessons.jsonl")
        (folder / "reward.py").write_text(REWARD)

    def _policy(self, name: str, folder: Path, run: Callable) -> None:
        self._sft(folder, run, self.data / "pairs.parquet", self.size["sft"])
        self._ask(folder / "model", folder / "eval", run)

    def _judge(self, name: str, folder: Path, run: Callable) -> None:
        self._sft(folder, run, self.data / "lessons.jsonl", self.size["judge"])

    def _sft(self, folder: Path, run: Callable, file: Path, settings: dict[str, Any]) -> None:
        stage = {**STAGES["sft"], "kind": "sft", **settings}
        recipe = {"ask": {"round-tokens": str(self.size["tokens"])}}
        paths = {"model": self.arguments.model, "data": file, "out": folder / "run"}
        command = train_command(stage, recipe, **paths, seed=0, device=self.device)
        run([*command, "trainer.logger=[console]"])
        keep(folder / "run" / "huggingface", folder / "model", folder / "run")

    def _ask(self, model: Path, out: Path, run: Callable, *more: Any) -> None:
        asked = ["--data", self.data / "rl.val.parquet", "--limit", self.size["ask"], "--concurrency", 128]
        asked += ["--round-tokens", self.size["tokens"]]
        verl_aiops(run, "eval", "--model", model, *asked, "--out", out, "--overwrite", *more)

    # --- reward models ------------------------------------------------------------------------------------------------

    def _ours(self, name: str, folder: Path, run: Callable, seed: int) -> None:
        groups = name.startswith("groups")
        rm, actor = self.size["rm"], "actor_rollout_ref.actor"
        # as many answers a step in both: a group has one pair fewer than answers
        batch = max(1, rm["batch"] // self.size["per_incident"]) if groups else rm["batch"]
        command = [sys.executable, "-m", "verl.trainer.main_ppo"]
        command += ["+verl_aiops=[rm,cpu]" if self.device == "cpu" else "+verl_aiops=rm"]
        command += [] if self.device == "cpu" else learning_stages.CUDA
        command += [f"data.train_files={self.data / ('groups.parquet' if groups else 'pairs.parquet')}"]
        command += [f"data.val_files={self.data / 'pairs.val.parquet'}", f"data.seed={seed}"]
        command += [f"data.train_batch_size={batch}", "data.truncation=drop"]
        command += ["data.max_prompt_length=1024", "data.max_response_length=1024"]
        command += [f"actor_rollout_ref.model.path={self.arguments.model}", f"{actor}.fsdp_config.seed={seed}"]
        command += [f"{actor}.ppo_micro_batch_size_per_gpu={batch}", f"{actor}.optim.lr={rm['lr']}"]
        command += [f"{actor}.optim.lr_scheduler_type=cosine", f"{actor}.optim.lr_warmup_steps_ratio=0.05"]
        command += [f"algorithm.rm.loss_type={'plackett_luce' if groups else 'bradley_terry'}"]
        command += ["algorithm.rm.center_rewards=" + ("0.0" if groups else "0.01"), "trainer.n_gpus_per_node=1"]
        command += [f"trainer.total_epochs={rm['epochs']}", "trainer.save_freq=-1", "trainer.test_freq=-1"]
        command += [f"{actor}.checkpoint.save_contents=[model,extra]", "trainer.logger=[console,file]"]
        command += [f"trainer.default_local_dir={folder / 'run'}"]
        run(command, {"VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")})
        keep(folder / "run" / "huggingface", folder / "model", folder / "run")
        self._rank(folder, run)

    def _trl(self, name: str, folder: Path, run: Callable, seed: int) -> None:
        rm = self.size["rm"]
        command = ["train-rm", "--backend", "trl", "--data", self.data / "pairs.parquet"]
        command += ["--val", self.data / "pairs.val.parquet", "--model", self.arguments.model, "--lora-rank", 0]
        command += ["--lr", rm["lr"], "--batch-size", rm["batch"], "--epochs", rm["epochs"], "--max-length", 1024]
        command += ["--seed", seed, "--device", self.device, "--save-steps", 1_000_000]
        verl_aiops(run, *command, "--out", folder / "model", "--overwrite")
        self._rank(folder, run)

    def _rank(self, folder: Path, run: Callable) -> None:
        asked = ["--pairs", self.data / "pairs.val.parquet", "--dtype", "float32", "--overwrite"]
        verl_aiops(run, "eval", "--rm", folder / "model", *asked, "--out", folder / "eval")

    def _best_of_n(self, name: str, folder: Path, run: Callable) -> None:
        sampled = ("--n", self.size["n"], "--temperature", 1.0)
        self._ask(self.work / "policy" / "model", folder / "answers", run, *sampled)
        asked = ["--answers", folder / "answers", "--out", folder / "eval", "--dtype", "float32", "--overwrite"]
        verl_aiops(run, "eval", "--rm", self.work / "pairs-s0" / "model", *asked)

    # --- online DPO ---------------------------------------------------------------------------------------------------

    def _online(self, name: str, folder: Path, run: Callable, by: str) -> None:
        with ExitStack() as servers:
            overrides = {
                "rule": lambda: [],
                "rm": lambda: self._by_model([]),
                "ensemble": lambda: self._by_model(self._members(servers, folder)),
                "judge": lambda: self._by_judge(servers, folder, run),
            }[by]()
            stage = {**STAGES["online_dpo"], "kind": "online_dpo", **self.size["online"], "min-gap": 0.0}
            stage |= {"loss": ["sigmoid"], "loss-weights": [1.0], "overrides": overrides}
            recipe = {"ask": {"round-tokens": str(self.size["tokens"])}}
            paths = {"model": self.work / "policy" / "model", "data": self.data / "rl.parquet", "out": folder / "run"}
            command = train_command(stage, recipe, **paths, seed=0, device=self.device)
            run(command, {"VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")})
        keep(folder / "run" / "huggingface", folder / "model", folder / "run")
        self._ask(folder / "model", folder / "eval", run)

    def _by_model(self, members: list[str]) -> list[str]:
        model, combined = "reward.reward_model", "+reward.combined"
        settings = ["reward.reward_manager.name=aiops_combined", f"{model}.enable=True", f"{model}.rollout.name=hf"]
        settings += [f"{model}.model_path={self.work / 'pairs-s0' / 'model'}", f"{model}.rollout.dtype=float32"]
        settings += [f"{combined}.mode=rm_only", f"{combined}.normalise=stored"]
        if members:
            settings += [f"{combined}.members=[{','.join(members)}]", f"{combined}.ensemble=mean_minus_std"]
            settings += ["++algorithm.online_dpo.members_agree=True"]
        return settings

    def _members(self, servers: ExitStack, folder: Path) -> list[str]:
        found = []
        for seed in range(1, self.arguments.seeds):
            model, port = self.work / f"pairs-s{seed}" / "model", free_port()
            command = [sys.executable, "-m", "verl_aiops.cli", "serve-rm", str(model), "--port", str(port)]
            servers.enter_context(serving(command, port, folder / f"member{seed}.txt"))
            found.append(f'{{path:"{model}",address:"127.0.0.1:{port}",server:hf}}')
        return found

    def _by_judge(self, servers: ExitStack, folder: Path, run: Callable) -> list[str]:
        port = free_port()
        if self.device == "cpu":
            command = [sys.executable, str(HERE / "learning_judge.py"), "stub", "--port", str(port)]
        else:
            command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(self.work / "judge" / "model")]
            command += ["--served-model-name", "judge", "--port", str(port), "--attention-backend", "triton"]
            command += ["--sampling-backend", "pytorch", "--grammar-backend", "none", "--dtype", "bfloat16"]
            command += ["--mem-fraction-static", "0.1", "--max-total-tokens", "200000", "--context-length", "4096"]
        servers.enter_context(serving(command, port, folder / "judge.txt"))
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        asked = ["--url", url, "--pairs", self.data / "pairs.val.parquet", "--limit", self.size["ask"]]
        run([sys.executable, HERE / "learning_judge.py", "measure", *asked, "--out", folder / "judge.json"])
        kwargs = "+reward.custom_reward_function.reward_kwargs"
        return [
            f"reward.custom_reward_function.path={self.data / 'reward.py'}",
            "reward.reward_manager.name=aiops_mturn",
            *(f"{kwargs}.{key}={value}" for key, value in (("url", url), ("model", "judge"), ("max_tokens", 40))),
            # a small model does not always keep to the form; what has no mark is in no pair
            "++algorithm.online_dpo.max_failed_share=0.9",
        ]


def verl_aiops(run: Callable, *arguments: object) -> None:
    run([sys.executable, "-m", "verl_aiops.cli", *map(str, arguments)])


def keep(found: Path, target: Path, run: Path) -> None:
    """Of a run's folder nothing but its model."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(found, target)
    shutil.rmtree(run)


if __name__ == "__main__":
    sys.exit(main())
