#!/usr/bin/env python3
"""Writes docs/configuration.md from the code: settings, presets, environment variables, commands; and the tables of
settings in other pages of docs/.

    python scripts/write_config_reference.py            # write the pages
    python scripts/write_config_reference.py --check    # exit code 1 if one of them is not what the code says

Names, types, defaults and meanings are those of the settings' fields, allowed values what their own checks answer to a
value that cannot be.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
PACKAGE = ROOT / "verl_aiops"
MARK = "<!-- settings of {}: written by scripts/write_config_reference.py -->"
PRESETS = PACKAGE / "config" / "verl_aiops"

# Variables that the package reads. `environment_table` refuses one that stands in the code alone, or here alone.
ENVIRONMENT = {
    "VERL_AIOPS_CACHE": "folder of reference scores (`reference/`) and token ids of pairs (`tokens/`); default "
    "`~/.cache/verl-aiops`",
    "VERL_AIOPS_CASES": "folder in which files of cases are looked for by name once they are not where they were when "
    "`build-rl --task investigation` wrote their paths",
    "VERL_USE_EXTERNAL_MODULES": "modules of your own, separated by commas, that verl imports in every process and "
    "`verl-aiops` before a command: [extending.md](extending.md)",
    "VERL_USE_EXTERNAL_PLUGINS": "verl's: which plug-ins it loads, `auto` (all, default), `none`, or names; "
    "`verl_aiops` must be among them",
    "VERL_PLATFORM": "verl's: `cpu` or `nvidia` decides the platform, which is otherwise detected; a run on a Ray "
    "cluster's CPUs hands `cpu` on to its workers",
    "VERL_ENGINE_DEVICE": "verl's: key of the engine registry; set to `cuda` on the CPU platform unless it is set",
    "PYTORCH_CUDA_ALLOC_CONF": "PyTorch's GPU allocator; unset, the workers of offline DPO let its segments grow",
    "PYTORCH_ALLOC_CONF": "its newer name",
    "GLIBC_TUNABLES": "glibc's; unless this or one of the next three is set, workers of offline DPO on a CPU keep the "
    "memory they free",
    "MALLOC_ARENA_MAX": "glibc's, as above",
    "MALLOC_MMAP_MAX_": "glibc's, as above",
    "MALLOC_TRIM_THRESHOLD_": "glibc's, as above",
    "VERL_FILE_LOGGER_PATH": "verl's: the file of `trainer.logger=file`; preference, GRPO and PPO runs of this package "
    "write `metrics.jsonl` in `trainer.default_local_dir` unless it or the next one is set",
    "VERL_FILE_LOGGER_ROOT": "verl's: folder of `PROJECT/EXPERIMENT.jsonl` instead",
    "TENSORBOARD_DIR": "verl's: folder of TensorBoard's events; here `tensorboard` in `trainer.default_local_dir` "
    "unless it is set",
    "VERL_AIOPS_SCORER_KEY": "what clients of the embedded reward server (`rollout.name=hf`) send as a bearer token; "
    "unset, each run makes one, which `ray.get_actor('hf_server_reward_0').key.remote()` tells",
    "VERL_AIOPS_TRUST_CHECKPOINTS": "`1`: read checkpoints whose files name code to be run; otherwise they are refused",
    "HYDRA_FULL_ERROR": "Hydra's: `1` shows the traceback of an error that is otherwise told in one line",
    "OPENAI_API_KEY": "key of the server that `verl-aiops triage` and `eval --endpoint` ask, unless `--api-key-env` of "
    "the latter names another",
    "CUDA_VISIBLE_DEVICES": "CUDA's: the GPUs that `--gpus` of `verl-aiops dpo` and the like may count",
    "WANDB_API_KEY": "Weights & Biases': its key; a run with `wandb` in `trainer.logger` is refused without this, a "
    "key in netrc, or one of the next two",
    "WANDB_MODE": "Weights & Biases': `offline` or `disabled` need no key",
    "WANDB_IDENTITY_TOKEN_FILE": "Weights & Biases': a token in place of a key",
    "WANDB_BASE_URL": "Weights & Biases': its host, whose key netrc has",
    "WANDB_CONFIG_DIR": "Weights & Biases': folder of its `settings`, which may name mode and host",
    "NETRC": "file of keys by host in place of `~/.netrc`",
    "NO_COLOR": "any text: `verl-aiops doctor` prints without colours",
    "RAY_ADDRESS": "Ray's: the cluster that a run joins, which is then checked before it starts",
}
# set for each process by Ray, verl or torchrun, not by a user
LAUNCHER = frozenset(
    {"DIST_INIT_METHOD", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "RAY_LOCAL_WORLD_SIZE", "WORLD_SIZE"}
)

REWARD_KWARGS = "reward.custom_reward_function.reward_kwargs"

BEGINNING = """\
# Configuration

Every setting of verl-aiops: what can be set, what it may be, and what it is when nothing is set. Written from the
code by `python scripts/write_config_reference.py`; to change a text, change the setting's field and run it again.

Settings are keys of verl's configuration, written `KEY=VALUE` behind `python -m verl.trainer.main_ppo`. Hydra wants a
`+` before a key that the configuration does not have yet. Presets declare our keys, so with a preset there is none. A
list is written `'KEY=[a,b]'`, in quotes. An unknown key of ours is refused, with the nearest known name.

A path with a space, with letters other than A to Z, or with one of `= , ( ) ' " & ~ { [ $ # :` needs Hydra's own quotes
inside the shell's: `"KEY='$FILE'"`. The scripts in `examples/` set them (`examples/hydra_values.sh`), so that `TRAIN`,
`VAL`, `MODEL`, `RM` and `OUT` may be any path.
"""

INTROS = {
    "Files of pairs": """\
How offline DPO and reward models' training read their files, beside verl's own `data.prompt_key`; more:
[data.md](data.md). The presets `dpo`, `kto` and `rm` declare these keys; without one put a `+` before them.
""",
    "Offline DPO": """\
Read with `algorithm.adv_estimator=dpo`. With the preset `+verl_aiops=dpo` write `algorithm.dpo.KEY=VALUE`; without it
`+algorithm.dpo.KEY=VALUE`.
""",
    "Reward models": """\
Read with `algorithm.adv_estimator=rm`. With the preset `+verl_aiops=rm` write `algorithm.rm.KEY=VALUE`; without it
`+algorithm.rm.KEY=VALUE`. More: [reward_model.md](reward_model.md).
""",
    "Online DPO": """\
Read with `algorithm.adv_estimator=online_dpo`. With the preset `+verl_aiops=online_dpo` write
`algorithm.online_dpo.KEY=VALUE`; without it `+algorithm.online_dpo.KEY=VALUE`. More: [online_dpo.md](online_dpo.md).
""",
    "GRPO, PPO and their kin": """\
Read by every run but DPO's. With a preset for RL, or `+verl_aiops=shared_prompt`, write the key as it stands; without
one put a `+` before it. More: [rl.md](rl.md).
""",
    "Looks for answers": """\
Arguments of verl's sampler, which it reads none of itself: `+trainer.v1.sampler.sampler_kwargs.KEY=VALUE`, with and
without a preset, in runs of GRPO, PPO and online DPO. Where `trainer.v1.sampler.custom_sampler` names one of your own,
all of them are its own.
""",
    "Rounds of an answer": """\
Read by the agent loop `aiops_mturn`. With one of the presets for RL write the key as it stands; without one put a `+`
before it. More: [rl.md](rl.md).
""",
    "Tools of an investigation": """\
Read by the agent loop `aiops_tools`. With the preset `+verl_aiops=[...,tools]` write the key as it stands; without it
put a `+` before it. How calls are spelled is verl's `actor_rollout_ref.rollout.multi_turn.format` (hermes, qwen3_coder,
glm, gpt-oss, ...). More: [investigation.md](investigation.md).
""",
    "The triage reward": f"""\
Keyword arguments of `verl_aiops.rewards.aiops_mturn.compute_score`: `+{REWARD_KWARGS}.KEY=VALUE`, with and without a
preset; `--reward KEY=VALUE` in `verl-aiops eval`. All weights but those of service and type must together stay below
each of these two. A part that is added has its `NAME_weight` here too: [extending.md](extending.md).
""",
    "The investigation reward": f"""\
Keyword arguments of `verl_aiops.rewards.aiops_investigation.compute_score`: `+{REWARD_KWARGS}.KEY=VALUE`, with and
without a preset; `--reward KEY=VALUE` in `verl-aiops eval`. The whole right set must earn more than any abstention, and
an abstention more than any verdict without a right component; weights under which it would not are refused. More:
[investigation.md](investigation.md).
""",
    "A language model as the judge": """\
Read where `reward.custom_reward_function.path=pkg://verl_aiops.rewards.model.judge_reward`. Put
`+reward.` before each key. More: [reward_model.md](reward_model.md#a-language-model-as-the-judge).
""",
    "Rule and reward model together": """\
Read by the reward manager `aiops_combined`. With the preset `+verl_aiops=[...,combined]` write
`reward.combined.KEY=VALUE`; without it `+reward.combined.KEY=VALUE`. The keys of the reward model's server are
verl's, `reward.reward_model.*`. More: [reward_model.md](reward_model.md).
""",
    "The rollout `hf`": """\
`actor_rollout_ref.rollout.name=hf`. It has no keys of its own. It follows these of verl, and takes `temperature`,
`top_p`, `top_k` and the limit of tokens from the agent loop. As a reward model's server
(`reward.reward_model.rollout.name=hf`) it follows `dtype`, `max_model_len`, `max_num_seqs`, `max_num_batched_tokens`
and `free_cache_engine` there. What it cannot do (`verl_aiops/rollout/hf/limits.py`) is refused by the setting's name
before a run starts.
""",
    "Keys of verl that a run fills in": """\
A key that still holds verl's own default and is not on the command line gets a value that fits the run, where the
reason holds; the run prints each, with its value. What you set yourself is never changed.
""",
    "Presets": """\
`+verl_aiops=NAME`, or several as `'+verl_aiops=[NAME,NAME]'`, of which later ones win. Keys on the command line win
over presets.
""",
    "Commands": """\
`verl-aiops COMMAND --help` prints the same. Exit codes: 0, 1 where a command says so, 2 after an error in the input.
""",
}


class PageError(Exception):
    """The code lacks what the page needs; the message names the place and how to mend it."""


def descriptions(owner: type, section: str) -> dict[str, str]:
    """`name: meaning` of a section of the docstring of a class, and of the classes it is made from."""
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        text = inspect.cleandoc(cls.__doc__ or "") if cls.__module__.startswith("verl_aiops") else ""
        _, _, body = text.partition(f"\n{section}:\n")
        name = ""
        for line in body.splitlines():
            if line.strip() and not line.startswith(" "):
                break
            if entry := re.match(r"    (\w+): (.*)", line):
                name = entry[1]
                found[name] = entry[2]
            elif line.startswith(" " * 8) and name:
                found[name] += " " + line.strip()
    return found


def yaml_text(value: Any) -> str:
    """A value as it is written in YAML and on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(yaml_text, value)) + "]"
    return str(value)


def type_text(parts: list[str]) -> str:
    plain = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "None": "null"}
    plain |= {"list[int]": "list of integers", "list[float]": "list of numbers", "list[str]": "list of texts"}
    plain |= {"tuple[float, float]": "two numbers"}
    return ", ".join(plain.get(part, part) for part in parts)


def allowed(check: Callable[[dict], Any], name: str) -> str:
    """What the check of a setting says that it expects; nothing where any text will do."""
    try:
        check({name: "?"})
    except ValueError as error:
        said = str(error)
    else:
        return ""
    for pattern in (
        r"there are: (.+)$",
        r"Known: (.+?)\.?$",
        r"expected (.+?)(?:, got .+)?\.?$",
        r"must be (.+), got ",
    ):
        if found := re.search(pattern, said):
            return found[1]
    raise PageError(f"{name}: its check says {said!r}, which names no allowed values (expected ..., there are: ...)")


def cells(*texts: str) -> str:
    return "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in texts) + " |"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [cells(*head), cells(*["---"] * len(head)), *(cells(*row) for row in rows), ""]


def settings_table(owner: type, prefix: str, check: Callable[[dict], Any], skip: tuple[str, ...] = ()) -> list[str]:
    from verl_aiops.settings import kinds

    rows = []
    for field in fields(owner):
        if field.name in skip:
            continue
        if "help" not in field.metadata:
            raise PageError(
                f"{owner.__name__}.{field.name}: not made by verl_aiops.settings.setting, so without a meaning"
            )
        row = [f"`{prefix}.{field.name}`", type_text(kinds(field)), f"`{yaml_text(field.default)}`"]
        rows.append([*row, allowed(check, field.name), field.metadata["help"]])
    return table(("key", "type", "default", "expected", "meaning"), rows)


def section_table(owner: type) -> list[str]:
    return settings_table(owner, owner.section, owner.from_config)


def short_table(owner: type, text: str) -> str:
    """``text`` with the table behind the mark of `owner` written anew: key, default, meaning."""
    rows = []
    for field in fields(owner):
        names = allowed(owner.from_config, field.name).removeprefix("one of ").split(", ")
        # a list of names that the meaning does not go through one by one
        unsaid = all(re.fullmatch(r"\w+", name) and f"`{name}`" not in field.metadata["help"] for name in names)
        meaning = field.metadata["help"].removesuffix(".")
        meaning += ": " + ", ".join(f"`{name}`" for name in names) if unsaid and len(names) > 1 else ""
        rows.append((f"`{field.name}`", f"`{yaml_text(field.default)}`", meaning))
    mark = MARK.format(owner.section)
    before, found, after = text.partition(f"{mark}\n\n")
    if not found:
        raise PageError(f"no line {mark!r} before the table of {owner.section}")
    below = re.sub(r"\A(\|.*\n)+", "", after)
    return before + found + "\n".join(table(("key", "default", "meaning"), rows)[:-1]) + "\n" + below


def pages() -> dict[Path, str]:
    """Every page that is written, docs/configuration.md first."""
    from verl_aiops.rewards.model.combined import CombinedSettings
    from verl_aiops.rollout.rounds.settings import RoundSettings
    from verl_aiops.trainers.config import DPOConfig, OnlineDPOConfig

    written = {PAGE: page()}
    for file, owner in (
        (ROOT / "docs" / "dpo.md", DPOConfig),
        (ROOT / "docs" / "online_dpo.md", OnlineDPOConfig),
        (ROOT / "docs" / "rl.md", RoundSettings),
        (ROOT / "docs" / "reward_model.md", CombinedSettings),
    ):
        written[file] = short_table(owner, file.read_text(encoding="utf-8"))
    return written


@cache
def verls_defaults():
    """verl's configuration of `main_ppo`, as Hydra composes it without any override."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folder = Path(importlib.util.find_spec("verl").submodule_search_locations[0]) / "trainer" / "config"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer")


def hf_table() -> list[str]:
    from omegaconf import OmegaConf

    from verl_aiops.rollout.hf.server import HFServer

    rollout = OmegaConf.to_container(verls_defaults().actor_rollout_ref.rollout, resolve=False)
    rows = [
        (f"`actor_rollout_ref.rollout.{name}`", f"`{yaml_text(rollout[name])}`", meaning)
        for name, meaning in descriptions(HFServer, "Settings").items()
    ]
    return table(("key of verl", "verl's default", "what `hf` does with it"), rows)


def filled_in() -> list[str]:
    from verl_aiops.trainers.preflight import defaults, defaults_rl

    groups = {
        "offline DPO": defaults.DEFAULTS,
        "online DPO": defaults_rl.ONLINE_DEFAULTS,
        "RL, online DPO": defaults_rl.RL_DEFAULTS,
        "triage reward": defaults_rl.TRIAGE_DEFAULTS,
        "reward model": defaults_rl.REWARD_MODEL_DEFAULTS,
    }
    merged: dict[tuple[str, str, str], list[str]] = {}
    for runs, group in groups.items():
        for default in group:
            was = " or ".join(map(yaml_text, default.verls if isinstance(default.verls, tuple) else (default.verls,)))
            merged.setdefault((default.key, was, default.why), []).append(runs)
    rows = [(f"`{key}`", f"`{was}`", "; ".join(runs), why) for (key, was, why), runs in sorted(merged.items())]
    return table(("key of verl", "verl's default", "runs", "why it gets another value"), rows)


def leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def preset_section(file: Path) -> list[str]:
    """A preset: its comment, what it stands on, each section of ours that it takes from the fields, and each key."""
    from omegaconf import OmegaConf

    from verl_aiops.trainers.data_settings import PairFiles

    content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    comment = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    defaults = content.pop("defaults", [])
    below = [name for name in defaults if isinstance(name, str) and name != "_self_"]
    sections = [place.partition("@_global_.")[2] for one in defaults if isinstance(one, dict) for place in one]
    lines = [f"### `+verl_aiops={file.stem}`", "", " ".join(comment[1:]), ""]
    if below:
        lines += ["On top of " + ", ".join(f"[`{name}`](#verl_aiops{name})" for name in below) + ":", ""]
    rows = []
    for section in sections:
        # one of verl's own holds more than our keys
        names = [of.name for of in fields(PairFiles)] if section == PairFiles.section else ["*"]
        rows += [(f"`{section}.{name}`", "every key at its default" if name == "*" else "`null`") for name in names]
    rows += [(f"`{key}`", f"`{yaml_text(value)}`") for key, value in leaves(content)]
    return lines + table(("key", "value"), rows)


@cache
def variables_read() -> frozenset[str]:
    """Names of the environment variables that the package reads or sets, as far as they stand in its code."""
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = {
            node.targets[0].id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                asked = node.slice
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("os.environ.", "os.getenv")):
                asked = node.args[0] if node.args else ast.Constant(None)
            else:
                continue
            for part in ast.walk(asked):
                name = part.value if isinstance(part, ast.Constant) else constants.get(getattr(part, "id", None))
                if isinstance(name, str) and name.isupper():
                    found.add(name)
    return frozenset(found)


def environment_table() -> list[str]:
    read = variables_read() - LAUNCHER
    if read != set(ENVIRONMENT):
        raise PageError(
            f"environment variables: the package reads {sorted(read - set(ENVIRONMENT))} that ENVIRONMENT in "
            f"{Path(__file__).name} does not explain, and not {sorted(set(ENVIRONMENT) - read)} that it does"
        )
    return table(("variable", "meaning"), ((f"`{name}`", meaning) for name, meaning in ENVIRONMENT.items()))


def option_row(action: argparse.Action, prog: str) -> tuple[str, str]:
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    metavar = action.metavar or choices or action.dest.upper()
    name = ", ".join(action.option_strings) or metavar
    if action.option_strings and action.nargs != 0:
        name += f" {metavar}" + (" ..." if action.nargs in ("+", "*") else "")
    text = (action.help or "") % {**vars(action), "prog": prog}
    if action.required and action.option_strings:
        text = f"**required**; {text}" if text else "**required**"
    if "default" not in text and action.default not in (None, False, [], argparse.SUPPRESS):
        text += f" (default {action.default})"
    return f"`{name}`", text


def command_section(name: str, command, parser: argparse.ArgumentParser) -> list[str]:
    rows = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions and group.title not in ("options", "positional arguments"):
            rows.append((f"**{group.title}**", ""))
        rows += [option_row(action, parser.prog) for action in actions]
        if group.description:
            rows.append((f"**{group.title}**", group.description))
    examples = [f"    {line}" for line in command.examples.splitlines()]
    text = command.summary[0].upper() + command.summary[1:] + "."
    return [f"### `verl-aiops {name}`", "", text, "", *examples, "", *table(("option", "meaning"), rows)]


def commands_section() -> list[str]:
    from verl_aiops.cli.main import COMMANDS, make_parser

    parsers = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    lines = []
    for name, command in COMMANDS.items():
        lines += command_section(name, command, parsers[name])
    return lines


def anchor(title: str) -> str:
    """GitHub's link to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def page() -> str:
    """The whole page.

    Raises:
        PageError: something in the code has no description.
    """
    from verl_aiops.rewards.investigation.settings import InvestigationSettings, read_investigation_settings
    from verl_aiops.rewards.model.combined import CombinedSettings
    from verl_aiops.rewards.model.judge_settings import JudgeSettings
    from verl_aiops.rewards.triage.settings import RewardSettings, read_settings
    from verl_aiops.rollout.rounds.settings import RoundSettings
    from verl_aiops.rollout.tools.settings import ToolSettings
    from verl_aiops.trainers.config import DPOConfig, OnlineDPOConfig
    from verl_aiops.trainers.data_settings import PairFiles
    from verl_aiops.trainers.rl.config import RLConfig
    from verl_aiops.trainers.rl.looks import LookSettings
    from verl_aiops.trainers.rm.config import RewardModelConfig

    presets = sorted(PRESETS.glob("*.yaml"))
    sections = {
        "Offline DPO": section_table(DPOConfig),
        "Files of pairs": section_table(PairFiles),
        "Reward models": section_table(RewardModelConfig),
        "Online DPO": section_table(OnlineDPOConfig),
        "GRPO, PPO and their kin": section_table(RLConfig),
        "Looks for answers": section_table(LookSettings),
        "Rounds of an answer": section_table(RoundSettings),
        "Tools of an investigation": section_table(ToolSettings),
        "The triage reward": settings_table(RewardSettings, REWARD_KWARGS, read_settings, skip=("parts",)),
        "The investigation reward": settings_table(
            InvestigationSettings, "reward_kwargs", read_investigation_settings, skip=("parts",)
        ),
        "Rule and reward model together": section_table(CombinedSettings),
        "A language model as the judge": settings_table(
            JudgeSettings, REWARD_KWARGS.removeprefix("reward."), JudgeSettings.from_section
        ),
        "The rollout `hf`": hf_table(),
        "Keys of verl that a run fills in": filled_in(),
        "Presets": [line for file in presets for line in preset_section(file)],
        "Environment variables": environment_table(),
        "Commands": commands_section(),
    }
    inner = {
        "Presets": [f"`+verl_aiops={file.stem}`" for file in presets],
        "Commands": [line[4:] for line in sections["Commands"] if line.startswith("### ")],
    }
    lines = [*BEGINNING.splitlines(), ""]
    for title in sections:
        lines.append(f"- [{title}](#{anchor(title)})")
        if title in inner:
            lines.append("  " + " · ".join(f"[{name}](#{anchor(name)})" for name in inner[title]))
    lines.append("")
    for title, body in sections.items():
        intro = [*INTROS[title].splitlines(), ""] if title in INTROS else []
        lines += [f"## {title}", "", *intro, *body]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    parser.add_argument(
        "--out", type=Path, default=PAGE, metavar="FILE", help="the page (default docs/configuration.md)"
    )
    args = parser.parse_args(argv)
    try:
        written = pages() if args.out == PAGE else {args.out: page()}
    except PageError as error:
        print(f"write_config_reference: error: {error}", file=sys.stderr)
        return 2
    if not args.check:
        for file, text in written.items():
            file.write_text(text, encoding="utf-8")
        return 0
    return int(any([differs(file, text) for file, text in written.items()]))


def differs(file: Path, text: str) -> bool:
    """Whether a page is not what the code says; says where."""
    found = file.read_text(encoding="utf-8") if file.is_file() else ""
    if found == text:
        return False
    old, new = found.splitlines(), text.splitlines()
    at = next((n for n, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    print(
        f"{file}, line {at + 1}: is not what the code says; run python scripts/write_config_reference.py\n"
        f"  page: {old[at] if at < len(old) else '(ends here)'}\n"
        f"  code: {new[at] if at < len(new) else '(ends here)'}",
        file=sys.stderr,
    )
    return True


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
