"""Checkpoints: the settings they were made with, which reference those of preference runs belong to, and the plain
model at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from verl_aiops.files import remove, replacing, write_atomically
from verl_aiops.models.card import write_card
from verl_aiops.models.folders import merge_checkpoint
from verl_aiops.models.processor import keep_processor
from verl_aiops.trainers.preflight.storage import model_bytes
from verl_aiops.trainers.runs.finite import FiniteRun, NotFiniteError, check_model_folder
from verl_aiops.trainers.runs.log import RunLog
from verl_aiops.trainers.runs.note import RunNote, write_note
from verl_aiops.trainers.runs.progress import told_while_written

__all__ = [
    "NotedCheckpoints",
    "PreferenceCheckpoints",
    "check_same_reference",
    "export_model",
    "exported_from",
    "resume_folder",
    "write_reference_note",
]

NOTE = "reference.json"
# the plain model, and the file in it that names the checkpoint it was made from
EXPORT, ORIGIN = "huggingface", "checkpoint.json"


def resume_folder(trainer: DictConfig) -> str | None:
    """The ``global_step_N`` folder that verl will resume from, or None."""
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    if trainer.resume_mode == "disable":
        return None
    if trainer.resume_mode == "resume_path":
        return os.path.abspath(trainer.resume_from_path)
    return find_latest_ckpt_path(os.path.abspath(trainer.default_local_dir))


def write_reference_note(folder: str, note: dict) -> None:
    write_atomically(os.path.join(folder, NOTE), json.dumps(note, indent=1))


def check_same_reference(folder: str, note: dict) -> None:
    """Refuse to go on from a checkpoint whose losses were taken against another reference.

    Raises:
        ValueError: the notes differ, or the checkpoint has none.
    """
    path = os.path.join(folder, NOTE)
    if not os.path.isfile(path):
        raise ValueError(
            f"{folder} is no checkpoint of a preference run (it has no {NOTE}). Choose another "
            "trainer.default_local_dir; trainer.resume_mode=disable does not write into a folder with checkpoints."
        )
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    keys = dict.fromkeys([*note, *before])
    changed = [
        f"{key}: {before.get(key)!r} then, {note.get(key)!r} now" for key in keys if before.get(key) != note.get(key)
    ]
    if changed:
        raise ValueError(
            f"{folder} was trained against another reference ({'; '.join(changed)}). Restore the settings or the model "
            "folder it was started with, or start anew with trainer.resume_mode=disable and another "
            "trainer.default_local_dir."
        )


class NotedCheckpoints:
    """Stands before verl's trainer in the bases: each checkpoint has the run's settings beside it."""

    def run_note(self) -> RunNote:
        """What a checkpoint remembers of the run's settings."""
        raise NotImplementedError

    def _checkpoint_folder(self) -> str:
        return os.path.join(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")

    def _save_checkpoint(self):
        # before verl's own part, whose last act is to declare the checkpoint complete
        write_note(self._checkpoint_folder(), self.run_note())
        super()._save_checkpoint()


class PreferenceCheckpoints(NotedCheckpoints, FiniteRun, RunLog):
    """What offline and online DPO do at checkpoints and at the end of a run; stands before verl's trainer in the bases.

    Wants ``dpo`` (a `PreferenceConfig`), `reference_note` and `run_note` of the trainer.
    """

    # the last step whose checkpoint this process has written
    _saved: int | None = None

    def reference_note(self) -> dict:
        """What a checkpoint remembers of its reference."""
        raise NotImplementedError

    def finish_export(self, folder: Path) -> None:
        """What else belongs to the plain model, put into its folder before it is in its place."""

    def check_resume(self) -> None:
        """Before anything is started. Raises ValueError if the run would go on from another run's checkpoint."""
        folder = resume_folder(self.config.trainer)
        if folder:
            check_same_reference(folder, self.reference_note())

    def fit(self, agent_loop_manager):
        """verl's loop, then the checkpoint of the last step and the plain model.

        Where no step is to be saved (``trainer.save_freq=-1``) the model is all that is written: a checkpoint would be
        several times as large, for its optimizer.
        """
        if self.config.trainer.get("val_only", False):
            super().fit(agent_loop_manager)
            return
        if self.nothing_left():
            # of a run that was cut short between its last checkpoint and the export, whose workers are needed for it
            if self.dpo.export_is_measured and self.dpo.export_model and not self._is_exported():
                self._export()
            return
        began = self.global_steps
        super().fit(agent_loop_manager)
        # fit() has counted past the last step; it may end before the total where the epochs do
        self.global_steps -= 1
        if self.global_steps <= began:
            print(f"verl-aiops: nothing was trained: trainer.total_epochs ended before step {began + 1}", flush=True)
            return
        self.finite.check_end()
        model_alone = self.dpo.export_model and self.config.trainer.save_freq <= 0
        if model_alone:
            self.check_weights(f"after step {self.global_steps}")
        elif self._saved != self.global_steps:
            self._save_checkpoint()
        if not self.dpo.export_model:
            return
        try:
            self._export()
        except Exception as error:
            if model_alone and not isinstance(error, NotFiniteError):
                # else nothing would be left of the run; the same command makes the model of it
                print("verl-aiops: the model could not be written; a checkpoint is saved instead", flush=True)
                self._save_checkpoint()
            raise

    def _export(self) -> None:
        target = export_model(self._checkpoint_folder(), self.config, self.finish_export, self._write_model)
        print(f"verl-aiops: trained model: {target}", flush=True)

    def _is_exported(self) -> bool:
        return exported_from(self.config) == os.path.basename(self._checkpoint_folder())

    def _write_model(self, folder: str) -> None:
        """As the workers hold it; not by way of a checkpoint, which would be read again."""
        import ray

        ray.get(self.actor_rollout_wg.write_model(folder))

    def _save_checkpoint(self):
        self.check_weights(f"after step {self.global_steps}")
        folder = self._checkpoint_folder()
        if self._saved != self.global_steps:
            # of a save that was cut short: the preflight refuses folders of other runs
            remove(Path(folder))
        self._write_notes(folder)
        if self.dpo.reference_sync_steps:
            self.actor_rollout_wg.save_reference(os.path.join(folder, "reference"))
        super()._save_checkpoint()
        self._saved = self.global_steps

    def _write_notes(self, folder: str) -> None:
        """Whatever of the trainer's own a run goes on from, beside what verl saves of it."""
        write_reference_note(folder, self.reference_note())

    def _load_checkpoint(self):
        super()._load_checkpoint()
        folder = resume_folder(self.config.trainer)
        if folder and self.dpo.reference_sync_steps:
            self.actor_rollout_wg.load_reference(os.path.join(folder, "reference"))
        if folder:
            self.check_weights(f"of {folder}")

    def check_weights(self, which: str) -> None:
        """Raises NotFiniteError if the workers hold a weight that is NaN or infinite."""
        bad = sorted({name for names in self.actor_rollout_wg.weights_not_finite() for name in names})
        if bad:
            raise NotFiniteError(
                f"{len(bad)} weights {which} are not finite: {', '.join(bad[:3])}{', ...' * (len(bad) > 3)}. Nothing "
                "is saved of them, and nothing exported. Take another model folder or an earlier checkpoint; if they "
                "became so in training, a smaller actor_rollout_ref.actor.optim.lr."
            )


def exported_from(config: DictConfig) -> str | None:
    """Name of the checkpoint that the exported model was made from; None without one, or where it does not say."""
    path = os.path.join(os.path.abspath(config.trainer.default_local_dir), EXPORT, ORIGIN)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)["checkpoint"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def export_model(
    folder: str,
    config: DictConfig,
    finish: Callable[[Path], None] | None = None,
    write: Callable[[str], None] | None = None,
) -> str:
    """Write the policy of a step as a plain Hugging Face folder, through verl's model merger.

    LoRA adapters are merged into the weights and kept beside them in ``lora_adapter``. verl's merger writes bfloat16. A
    card (`models.card`) says what the model was made of.

    Args:
        folder: the step's checkpoint; its name alone is needed where there is a ``write``.
        finish: what else is to be done to the folder before it is in its place.
        write: puts the model into an empty folder; without it the checkpoint's shards are merged.

    Returns:
        the folder, ``<default_local_dir>/huggingface``.

    Raises:
        NotFiniteError: a weight is not finite.
    """
    target = os.path.join(os.path.abspath(config.trainer.default_local_dir), EXPORT)
    model = config.actor_rollout_ref.model
    with replacing(target, folder=True) as partial:
        with told_while_written(partial, "model", model_bytes(model.get("path"))):
            if write is not None:
                write(str(partial))
            else:
                merge_checkpoint(os.path.join(folder, "actor"), str(partial), model.trust_remote_code)
        if start := model.get("path"):
            keep_processor(start, partial)
        check_model_folder(partial)
        origin = {"checkpoint": os.path.basename(folder)}
        (partial / ORIGIN).write_text(json.dumps(origin) + "\n", encoding="utf-8")
        logged = os.environ.get("VERL_FILE_LOGGER_PATH") or os.path.join(os.path.dirname(target), "metrics.jsonl")
        if finish is not None:
            finish(partial)
        write_card(partial, config, os.path.basename(folder), logged)
    return target
