"""The commands `dpo`, `online-dpo`, `grpo`, `sft` and `rm`, of the table in `tasks`."""

from __future__ import annotations

import argparse
from functools import partial

from verl_aiops.cli.command import Command
from verl_aiops.cli.fronts.line import FrontError, make_line
from verl_aiops.cli.fronts.options_file import read_options
from verl_aiops.cli.fronts.tasks import BACKENDS, OPTIONS, TASKS, Task

__all__ = ["FRONTS"]


def _options(parser: argparse.ArgumentParser, *, task: Task, backends: dict[str, Task]) -> None:
    for name in task.keys:
        option = OPTIONS[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=option.kind,
            metavar=option.metavar,
            action="append" if option.many else "store",
            choices=option.choices or None,
            help=option.meaning + " (to be given)" * (name in task.required),
        )
    if backends:
        parser.add_argument(
            "--backend",
            choices=tuple(backends),
            default=next(iter(backends)),
            help="what trains: verl's main_ppo on any number of devices, or TRL's trainer on one (default %(default)s)",
        )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of the same options (lora_rank: 16) and of settings; --OPTION wins"
    )
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the command line and stop")
    parser.add_argument(
        "--verbose", action="store_true", help="show all that the trainer prints, verl's own step lines"
    )
    settings = "settings of the trainer, as Hydra reads them"
    settings += " (with --backend trl: options of train-rm, as key=value)" * bool(backends)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=f"{settings}; they win over everything else")
    parser.set_defaults(takes_more=True)


def _run(args: argparse.Namespace, *, task: Task, backends: dict[str, Task]) -> int:
    # what argparse leaves over: settings that stand behind an option, and options that there are not
    overrides = [*args.settings, *args.more]
    if backends:
        named = task.keys
        task = backends[args.backend]
        if lost := [name for name in named if name not in task.keys and getattr(args, name) is not None]:
            raise FrontError(f"--{lost[0].replace('_', '-')}: not with --backend {args.backend}")
    options = {name: getattr(args, name) for name in task.keys}
    if args.config:
        filed, settings = read_options(args.config, task)
        options = filed | {name: value for name, value in options.items() if value is not None}
        overrides = [*settings, *overrides]
    line = make_line(task, options, overrides)
    if args.only_print:
        print(line.shown(" \\\n  "))
        return 0
    from verl_aiops.cli.fronts.running import run_line

    if task.model_from_checkpoint:
        # verl's own trainer, which the checks before Ray do not see
        from verl_aiops.trackers import tracker_faults

        loggers = (line.value(task.logger) or "").strip("[]").replace("'", "").replace('"', "")
        if faults := tracker_faults([name.strip() for name in loggers.split(",") if name.strip()]):
            raise FrontError("\n  ".join(faults))
    print(line.shown(), flush=True)
    return run_line(task, line, verbose=args.verbose)


def _command(name: str, task: Task) -> Command:
    val = f" --val {task.sample}.val.parquet"
    out = f"runs/{name.replace('-', '_')}"
    call = f"verl-aiops {name} --model models/SmolLM2-135M-Instruct --data {task.sample}.parquet{val} --out {out}"
    more = "trainer.seed=2" if task.model_from_checkpoint else "data.seed=2"
    backends = BACKENDS.get(name, {})
    examples = [call, f"{call} --print", f"verl-aiops {name} --config run.yaml --lora-rank 16 {more}"]
    if backends:
        examples.append(f"{call} --backend {[*backends][1]}")
    return Command(
        task.summary,
        "\n".join(examples),
        partial(_options, task=task, backends=backends),
        partial(_run, task=task, backends=backends),
    )


FRONTS = {name: _command(name, task) for name, task in TASKS.items()}
