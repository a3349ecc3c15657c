"""Whether the checkpoint that a run would go on from is whole, asked before Ray starts.

verl starts at step 0 without a word where its tracker names a folder that is gone, and dies in a worker, with the
model loaded, over a file that was cut short.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.models.checkpoint_pickle import TRUST, foreign_code
from verl_aiops.trainers.config import ConfigError

__all__ = ["check_checkpoint", "damage", "find_checkpoint", "steps_in"]

TRACKER = "latest_checkpointed_iteration.txt"
NOTE = "reference.json"
_STEP = re.compile(r"global_step_(\d+)")
_RANKED = re.compile(r"(\w+)_world_size_(\d+)_rank_(\d+)\.pt")
# read whole, to compare its checksums, as long as that takes seconds; of larger files the directory at the end is read
_READ_WHOLE = 1 << 30


def find_checkpoint(config: DictConfig, *, preference: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint that verl will go on from, found as verl finds it, and what is worth saying of others.

    Args:
        config: ``trainer.resume_from_path`` is made absolute in place.
        preference: a run of our preference trainers, whose checkpoints hold a note of their reference.

    Raises:
        ConfigError: the checkpoint is not where it should be, or its notes are damaged; says which one would do.
    """
    trainer = config.trainer
    if trainer.resume_mode == "disable":
        return None, []
    if trainer.resume_mode == "resume_path":
        folder, lines = _named_folder(config, preference), []
    elif trainer.resume_mode == "auto":
        folder, lines = _latest(config, preference)
    else:
        raise ConfigError(f"trainer.resume_mode={trainer.resume_mode}: expected auto, disable or resume_path.")
    if folder and preference:
        _refuse(folder, list(_note_faults(folder)), config, preference)
    return folder, lines


def check_checkpoint(config: DictConfig, *, preference: bool) -> None:
    """Refuse a checkpoint with files that are missing or cut short; arguments and errors as of `find_checkpoint`."""
    folder, _ = find_checkpoint(config, preference=preference)
    if folder:
        _refuse(folder, damage(folder, config, preference), config, preference)


def _refuse(folder: Path, faults: list[str], config: DictConfig, preference: bool) -> None:
    if faults:
        raise ConfigError(f"checkpoint {folder}: {_listed(faults)}. {_others(folder, config, preference)}")


def _named_folder(config: DictConfig, preference: bool) -> Path:
    asked = config.trainer.resume_from_path
    if not isinstance(asked, str) or not asked:
        raise ConfigError("trainer.resume_mode=resume_path needs trainer.resume_from_path=.../global_step_N.")
    folder = Path(os.path.abspath(os.path.expanduser(asked)))
    if not _STEP.fullmatch(folder.name) or str(folder).count("global_step_") > 1:
        raise ConfigError(f"trainer.resume_from_path={asked}: expected the path of one folder global_step_N.")
    if not folder.is_dir():
        raise ConfigError(f"trainer.resume_from_path={asked}: no such folder. {_others(folder, config, preference)}")
    with open_dict(config):
        config.trainer.resume_from_path = str(folder)
    return folder


def _latest(config: DictConfig, preference: bool) -> tuple[Path | None, list[str]]:
    run = Path(os.path.abspath(os.path.expanduser(config.trainer.default_local_dir)))
    tracker, there = run / TRACKER, steps_in(run)
    if not os.path.exists(tracker):
        whole = _newest_whole(there, config, preference)
        if whole:
            raise ConfigError(
                f"{run} holds whole checkpoints, but no {TRACKER}, by which the last is found, so the run would start "
                f"at step 0 and write over them. {_remedy(whole)}"
            )
        if there and not preference:  # the preference trainers say so themselves
            return None, [f"{run}: {len(there)} unfinished checkpoint(s), so this run starts at step 0"]
        return None, []
    try:
        text = tracker.read_bytes().decode("utf-8", "replace")
        step = int(text)
    except (OSError, ValueError) as error:
        what = f"cannot be read ({error})" if isinstance(error, OSError) else f"holds no number but {text[:20]!r}"
        raise ConfigError(f"{tracker} {what}. {_others(run / 'x', config, preference)}") from None
    folder = run / f"global_step_{step}"
    if not folder.is_dir():
        raise ConfigError(f"{tracker} names {folder.name}, which is not there. {_others(folder, config, preference)}")
    return folder, []


def steps_in(run: Path) -> dict[int, Path]:
    """Checkpoint folders of a run by their step, whole or not."""
    try:
        entries = list(run.iterdir())
    except OSError:
        return {}
    named = {match: entry for entry in entries if (match := _STEP.fullmatch(entry.name)) and entry.is_dir()}
    return {int(match[1]): entry for match, entry in sorted(named.items(), key=lambda item: int(item[0][1]))}


def damage(folder: Path, config: DictConfig, preference: bool) -> list[str]:
    """What is missing or cut short in a checkpoint, as far as the run would read it; one entry a file."""
    return list(_damage(folder, config, preference))


def _damage(folder: Path, config: DictConfig, preference: bool) -> Iterator[str]:
    if preference:
        yield from _note_faults(folder)
    if config.actor_rollout_ref.actor.strategy in ("fsdp", "fsdp2"):
        contents = OmegaConf.select(config, "actor_rollout_ref.actor.checkpoint.load_contents")
        yield from _shard_faults(folder / "actor", config, list(contents or ["model", "optimizer", "extra"]))
    if config.algorithm.adv_estimator == "gae" and OmegaConf.select(config, "critic.strategy") in ("fsdp", "fsdp2"):
        contents = OmegaConf.select(config, "critic.checkpoint.load_contents")
        yield from _shard_faults(folder / "critic", config, list(contents or ["model", "optimizer", "extra"]))
    # verl goes on without it, from the beginning of the data
    fault = _torch_file_fault(folder / "data.pt")
    if fault:
        yield f"data.pt {fault}"
    for file in sorted((folder / "reference").glob("*.pt")):
        fault = _torch_file_fault(file)
        if fault:
            yield f"reference/{file.name} {fault}"


def _note_faults(folder: Path) -> Iterator[str]:
    try:
        if not isinstance(json.loads((folder / NOTE).read_bytes()), dict):
            raise ValueError
    except FileNotFoundError:
        if folder.is_dir():
            yield f"{NOTE} is not there, so this is no checkpoint of a preference run"
    except OSError as error:
        yield f"{NOTE} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        yield f"{NOTE} is damaged (no JSON object)"


def _shard_faults(part: Path, config: DictConfig, contents: list[str]) -> Iterator[str]:
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if not part.is_dir():
        yield f"{part.name}/ is not there"
        return
    kinds = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
    found: dict[tuple[str, int, int], Path] = {}
    for file in part.iterdir():
        match = _RANKED.fullmatch(file.name)
        if match:
            found[match[1], int(match[2]), int(match[3])] = file
    sizes = {size for _, size, _ in found}
    if sizes and ranks not in sizes:
        yield f"{part.name}/ was written by {max(sizes)} worker(s), and this run has {ranks}"
        return
    for content in contents:
        if content not in kinds:
            continue
        for rank in range(ranks):
            file = found.get((kinds[content], ranks, rank))
            name = f"{part.name}/{kinds[content]}_world_size_{ranks}_rank_{rank}.pt"
            # on several machines each may have its own ranks' files
            fault = _torch_file_fault(file) if file else "is not there" if config.trainer.nnodes == 1 else None
            if fault:
                yield f"{name} {fault}"


def _torch_file_fault(file: Path) -> str | None:
    """What is wrong with a file that ``torch.save`` wrote: a zip, whose directory stands at its end."""
    try:
        with zipfile.ZipFile(file) as content:
            names = content.namelist()
            if not any(name.endswith("data.pkl") for name in names):
                return "is damaged (no file of torch.save)"
            if file.stat().st_size <= _READ_WHOLE:
                bad = content.testzip()
                if bad is not None:
                    return f"is damaged (its checksum of {bad} is wrong)"
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except Exception:  # zipfile and zlib have half a dozen kinds for damaged files
        return "is damaged or cut short" if os.path.getsize(file) else "is empty"
    calls = foreign_code(file)
    return f"would run code when it is read ({calls!r}); {TRUST}=1 if you made it yourself" if calls else None


def _newest_whole(there: dict[int, Path], config: DictConfig, preference: bool, but: Path | None = None) -> Path | None:
    for folder in reversed(there.values()):
        if folder != but and next(_damage(folder, config, preference), None) is None:
            return folder
    return None


def _listed(faults: list[str]) -> str:
    more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
    return "; ".join(faults[:5]) + more


def _others(folder: Path, config: DictConfig, preference: bool) -> str:
    whole = _newest_whole(steps_in(folder.parent), config, preference, but=folder)
    if whole:
        return _remedy(whole)
    return (
        f"No other checkpoint in {folder.parent} is whole: bring the missing files back, or start anew with "
        "trainer.resume_mode=disable and another trainer.default_local_dir."
    )


def _remedy(whole: Path) -> str:
    return (
        f"{whole.name} is whole: go on from it with trainer.resume_mode=resume_path trainer.resume_from_path={whole} "
        "and another trainer.default_local_dir (or this one, with later checkpoints moved away), or start anew with "
        "trainer.resume_mode=disable and another trainer.default_local_dir."
    )
