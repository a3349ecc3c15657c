"""RL files through verl's own data set: does training get every row as it was written?

Works for any task. The command `build-rl --model` asks it.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verl_aiops.data.reading import FileRow, open_files

__all__ = ["MAX_PROMPT_LENGTH", "RlDataError", "RlReport", "VerlCheck"]

MAX_PROMPT_LENGTH = 1024


class RlDataError(ValueError):
    """RL data, or a model folder, that training cannot use; the message names the file and says what to change."""


@dataclass(frozen=True)
class RlReport:
    """What verl makes of one file. Tokens are counted with chat template and generation prompt."""

    file: str
    rows: int
    mean_tokens: float
    longest: int
    too_long: int
    max_prompt_length: int

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.rows:,} rows loaded by verl's RLHFDataset; prompts of {self.mean_tokens:,.0f} tokens "
            f"on average, at most {self.longest:,}; {self.too_long:,} longer than {self.max_prompt_length:,}"
        )


class VerlCheck:
    """Loads files as `main_ppo` would and compares them, row by row, with what stands in them.

    Args:
        model: folder with a tokenizer and its chat template.
        max_prompt_length: `data.max_prompt_length` of the training; verl drops longer prompts. None: 1024.

    Raises:
        RlDataError: the folder or the number cannot be used.
    """

    def __init__(self, model: str, max_prompt_length: int | None = None):
        self.max_prompt_length = MAX_PROMPT_LENGTH if max_prompt_length is None else max_prompt_length
        if self.max_prompt_length < 1:
            raise RlDataError(f"max prompt length: expected 1 or more, found {max_prompt_length}")
        self.tokenizer = _load_tokenizer(model)

    def reports(self, files: Sequence[str]) -> Iterator[RlReport]:
        """A report on each file, then the error if any row would be dropped.

        Raises:
            RlDataError: verl drops rows, reads one otherwise than it is written, or cannot render its prompt.
        """
        dropping = []
        for file in files:
            report = self._report(file)
            yield report
            if report.too_long:
                dropping.append(report)
        if dropping:
            raise RlDataError(
                "; ".join(f"{r.file}: verl drops {r.too_long:,} of {r.rows:,} rows" for r in dropping)
                + f" with prompts over {self.max_prompt_length:,} tokens; train with data.max_prompt_length="
                f"{max(r.longest for r in dropping)}, or build again with a smaller --max-chars (evidence stays whole)"
            )

    def _report(self, name: str) -> RlReport:
        (file,) = open_files(name)
        all_rows = np.arange(file.rows)
        # First: where a template refuses prompts, verl prints a traceback for each and goes on without them.
        lengths = [self._count(record) for record in file.records(["prompt"], all_rows)]
        with _loaded_by_verl(name, self.tokenizer, self.max_prompt_length) as dataset:
            kept = 0
            for record, length in zip(file.records(file.columns, all_rows), lengths):
                if length > self.max_prompt_length:
                    continue
                if kept < len(dataset):
                    _compare(record, dataset[kept])
                kept += 1
            if kept != len(dataset):
                raise RlDataError(
                    f"{name}: verl keeps {len(dataset):,} rows where {kept:,} have prompts of at most "
                    f"{self.max_prompt_length:,} tokens; try the chat template of another model folder"
                )
        too_long = sum(length > self.max_prompt_length for length in lengths)
        return RlReport(name, len(lengths), sum(lengths) / len(lengths), max(lengths), too_long, self.max_prompt_length)

    def _count(self, record: FileRow) -> int:
        from verl_aiops.seam.rollout import normalize_token_ids

        prompt = record.values.get("prompt")
        try:
            ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)
        except Exception as error:  # templates raise what they like
            raise RlDataError(
                f"{record.where}: the chat template refuses the prompt ({' '.join(str(error).split())}); use another "
                "model's folder, or mend the row"
            ) from error
        return len(normalize_token_ids(ids))


def _compare(record: FileRow, loaded: dict) -> None:
    for key, written in record.values.items():
        if key not in loaded or loaded[key] != written:
            found = repr(loaded[key])[:120] if key in loaded else "nothing"
            raise RlDataError(
                f"{record.where}: verl reads '{key}' as {found}, the file has {repr(written)[:120]}; write parquet, "
                "whose types are fixed, instead of JSONL, or mend the row"
            )
    if loaded["raw_prompt"] != record.values["prompt"]:
        raise RlDataError(f"{record.where}: verl changes the prompt to {str(loaded['raw_prompt'])[:200]}; mend the row")


def _load_tokenizer(model: str):
    if not Path(model).expanduser().is_dir():
        raise RlDataError(f"--model {model}: no such folder; name one with a tokenizer, as get-model makes")
    try:
        from verl.utils import hf_tokenizer
    except ImportError as error:
        raise RlDataError(f"--model needs verl ({error}); install it, or leave --model out") from error
    try:
        tokenizer = hf_tokenizer(str(Path(model).expanduser()), trust_remote_code=False)
    except (ImportError, OSError, ValueError) as error:
        raise RlDataError(f"--model {model}: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from error
    if tokenizer.chat_template is None:
        raise RlDataError(f"--model {model}: its tokenizer has no chat template; name an instruct model's folder")
    return tokenizer


@contextlib.contextmanager
def _loaded_by_verl(file: str, tokenizer, max_prompt_length: int):
    """verl's data set of `file`, as `main_ppo` makes it with `data.filter_overlong_prompts=True`."""
    import datasets
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    config = OmegaConf.create(
        {
            "max_prompt_length": max_prompt_length,
            "filter_overlong_prompts": True,
            "filter_overlong_prompts_workers": None,
            "return_raw_chat": True,
            "truncation": "error",
        }
    )
    cache, bars = datasets.config.HF_DATASETS_CACHE, datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    # A copy of the data in the user's cache is what a check should not leave behind.
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = folder
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                dataset = RLHFDataset(str(Path(file).expanduser()), tokenizer, config)
            yield dataset
        finally:
            datasets.config.HF_DATASETS_CACHE = cache
            if not bars:
                datasets.enable_progress_bars()
