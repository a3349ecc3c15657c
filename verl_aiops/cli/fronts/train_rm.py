"""`verl-aiops train-rm` on verl's engines: its options as the line of the stock trainer, and the model's folder."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_aiops.cli.fronts.line import make_line
from verl_aiops.cli.fronts.running import run_line
from verl_aiops.cli.fronts.tasks import TASKS
from verl_aiops.evaluation.stats.calibration import STATS
from verl_aiops.files import write_atomically
from verl_aiops.settings import option
from verl_aiops.trl.extra import CHECKPOINTS, TrainingError, check_folder, move_into, prepare_folder
from verl_aiops.trl.reward_settings import RewardTraining

if TYPE_CHECKING:
    from verl_aiops.data.rows import PreferenceRow

__all__ = ["train_on_verl"]

# of the options of `train-rm`: what only TRL's trainer knows
_TRL_ALONE = ("max_too_long_share",)


def train_on_verl(settings: RewardTraining, out: str, *, overwrite: bool = False, only_print: bool = False) -> int:
    """Run it; the folder ``out`` is then what `trl.reward.train_reward_model` would leave, ``checkpoints/`` the run's.

    Returns:
        the run's exit code.

    Raises:
        TrainingError: a setting that only TRL's trainer knows, or a folder that cannot be used.
        FrontError, PreferenceDataError: the options make no run, or the data cannot be used.
    """
    settings.check()
    if settings.trl:
        raise TrainingError(f"{' '.join(settings.trl)}: options of TRL's trainer; add --backend trl")
    defaults = {of.name: of for of in fields(RewardTraining) if of.default is not MISSING}
    for name in _TRL_ALONE:
        if getattr(settings, name) != defaults[name].default:
            raise TrainingError(f"{option(defaults[name])}: of TRL's trainer; add --backend trl, or remove it")
    folder = Path(out).expanduser()
    data, val, columns = list(settings.data), list(settings.val), settings.columns
    note = json.loads(json.dumps({**asdict(settings), "backend": "verl"}))
    if not only_print:
        check_folder(out, note, finished=STATS, overwrite=overwrite)
        # before the folder is a run's: data that cannot be read leave nothing there
        sides = None if val else _split(settings)
        folder = prepare_folder(out, note, finished=STATS, overwrite=overwrite)
        if sides is not None:
            # what is held out of --data is written with our own names
            paths = {side: folder / f"pairs.{side}.jsonl" for side in sides}
            for side, lines in sides.items():
                write_atomically(paths[side], "".join(lines))
            data, val, columns = [str(paths["train"])], [str(paths["val"])], None
    options = {
        "model": settings.model,
        "data": data,
        "val": val or None,
        "out": str(folder / CHECKPOINTS),
        "lora_rank": settings.lora_rank,
        "gpus": {"auto": None, "cpu": 0, "cuda": 1}[settings.device],
        "lr": settings.lr,
        "batch_size": settings.batch_size * settings.grad_accum,
        "epochs": settings.epochs,
        "columns": columns,
    }
    line = make_line(TASKS["rm"], options, _overrides(settings, data, columns))
    print(line.shown(" \\\n  " if only_print else " "), flush=True)
    if only_print:
        return 0
    code = run_line(TASKS["rm"], line)
    if code == 0:
        move_into(folder, folder / CHECKPOINTS / "huggingface", last=STATS)
        print(
            f"reward model: {folder}\nuse it with\n  +verl_aiops=[grpo_mturn,combined] "
            f"reward.reward_model.model_path={out}"
        )
    return code


def _overrides(settings: RewardTraining, data: list[str], columns: str | None) -> list[str]:
    actor, rm = "actor_rollout_ref.actor", "algorithm.rm"
    return [
        f"data.max_prompt_length={settings.max_length}",
        f"data.max_response_length={settings.max_length}",
        "data.truncation=drop",
        f"data.seed={settings.seed}",
        f"{actor}.fsdp_config.seed={settings.seed}",
        f"{actor}.fsdp_config.model_dtype={settings.dtype}",
        f"{actor}.ppo_micro_batch_size_per_gpu={settings.batch_size}",
        f"{actor}.optim.lr_scheduler_type=cosine",
        f"{actor}.optim.lr_warmup_steps_ratio={settings.warmup}",
        *([f"actor_rollout_ref.model.lora_alpha={settings.lora_alpha}"] if settings.lora_rank else []),
        f"{rm}.center_rewards={settings.center or 0.0}",
        *([f"{rm}.score_margin=1.0"] if _have_margins(data, columns) else [f"{rm}.margin={settings.margin}"]),
        f"trainer.save_freq={settings.save_steps}",
    ]


def _have_margins(files: list[str], columns: str | None) -> bool:
    """Whether a row has the column that goes before `--margin`: any row, since a file may have groups beside pairs."""
    import numpy as np

    from verl_aiops.data.fields import keys_of_option
    from verl_aiops.data.reading import ParquetFile, open_files

    name = keys_of_option(columns).get("margin_key", "margin")
    return any(
        record.values.get(name) is not None
        for file in open_files(files, arrays=True)
        if name in (file.columns or ()) or not isinstance(file, ParquetFile)
        for record in file.records([name], np.arange(file.rows))
    )


def _split(settings: RewardTraining) -> dict[str, list[str]]:
    """``--data`` as two files' lines, ``train`` and ``val``, of rows with our names, by the same rule as `build-prefs`:
    no group on both sides."""
    import numpy as np

    from verl_aiops.data.columns import PROMPT_COLUMNS
    from verl_aiops.data.errors import FaultList, PreferenceDataError, RowFault
    from verl_aiops.data.fields import GROUP, PAIR, SINGLE, Columns, keys_of_option
    from verl_aiops.data.reading import ParquetFile, open_files
    from verl_aiops.data.rows import parse_row
    from verl_aiops.split import split_side

    of = Columns(**{key.removesuffix("_key"): name for key, name in keys_of_option(settings.columns).items()})
    sides: dict[str, list[str]] = {"train": [], "val": []}
    faults = FaultList()
    for file in open_files(list(settings.data), arrays=True):
        # as `data.loading` reads them: of parquet no other column, of lines any shape, whatever the first one has
        shapes = of.shapes(file.columns or ()) if isinstance(file, ParquetFile) else (PAIR, GROUP, SINGLE)
        names = [*of.names(*shapes), *PROMPT_COLUMNS, *of.read_beside(file.columns or ())]
        for record in file.records(names, np.arange(file.rows)):
            try:
                if record.fault:
                    raise RowFault(record.fault)
                row = parse_row(record.values, of, record.others, of.shape_of(record.values))
            except (RowFault, RecursionError) as fault:
                faults.add(record.where, str(fault) if isinstance(fault, RowFault) else "is nested too deeply")
                continue
            kept = _with_our_names(row)
            if row.shape == PAIR and record.values.get(of.margin) is None:
                kept.pop("margin", None)  # that of two scores is no lead that the file asks for
            group = row.group if row.group is not None else json.dumps(row.prompt)
            sides[split_side(group, settings.val_share, settings.seed)].append(json.dumps(kept) + "\n")
    if faults.count:
        raise PreferenceDataError(faults.message(f"{faults.count} rows cannot be used:"))
    if not all(sides.values()):
        raise PreferenceDataError(
            f"--val-share {settings.val_share} leaves {len(sides['train'])} rows to train on and {len(sides['val'])} "
            "to hold out: give --val FILE, or another share"
        )
    return sides


def _with_our_names(row: PreferenceRow) -> dict[str, Any]:
    """A row as a file's line, which reads back as the same row."""
    from verl_aiops.data.fields import PAIR, SINGLE

    kept: dict[str, Any] = {"prompt": row.prompt, "weight": row.weight}
    if row.shape == PAIR:
        kept |= {"chosen": row.chosen, "rejected": row.rejected}
        kept |= {"margin": row.margin} if row.margin == row.margin else {}
    elif row.shape == SINGLE:
        kept |= {"completion": row.answers[0], "label": row.label}
    else:
        kept |= {"completions": [{"content": answer} for answer in row.answers], "ranks": row.ranks}
        kept |= {"scores": row.scores} if row.scores[0] == row.scores[0] else {}
    kept |= {name: value for name in ("id", "group") if (value := getattr(row, name)) is not None}
    return kept | ({"tools": row.tools} if row.tools else {})
