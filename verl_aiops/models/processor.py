"""What a vision-language checkpoint has beside its weights and tokenizer, for servers of the model made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

__all__ = ["keep_processor"]

# as transformers' image and video processors are saved; not their templates, which may be others than were trained with
_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def keep_processor(start: str, folder: Path) -> list[str]:
    """Copy the processor of the model that a run started from into the folder of the trained one: verl saves tokenizers
    alone, and servers do not load a vision-language model without. Training of text leaves images as they were.

    Args:
        start: a folder, or a name on a hub, whose files are taken as they were fetched when the model was loaded.
        folder: of the trained model; a file that is there stays.

    Returns:
        the names of the files copied.
    """
    copied = []
    for name in _FILES:
        path = Path(start, name)
        if not Path(start).is_dir():
            fetched = try_to_load_from_cache(start, name) if start.count("/") <= 1 and "://" not in start else None
            path = Path(fetched) if isinstance(fetched, str) else path
        if path.is_file() and not (folder / name).exists():
            shutil.copyfile(path, folder / name)
            copied.append(name)
    return copied
