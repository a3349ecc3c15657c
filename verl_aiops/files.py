"""Files and folders that are whole or not there: written beside their place, flushed to the disk, then renamed.

What cannot be written is an `OSError` that names the path, whatever library wrote. The temporary is removed then; one
that a killed process left is removed by a later writer in that folder, after a day.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

__all__ = [
    "WriteError",
    "default_cache_dir",
    "feed",
    "leads_out",
    "move_into_place",
    "naming",
    "readable",
    "remove",
    "replacing",
    "size_text",
    "temporary_beside",
    "write_atomically",
]

# an ending that nobody else gives: whatever bears it may be removed once nobody can be writing it any more
SUFFIX = ".verl-aiops-tmp"
_STALE_S = 24 * 3600
_NAME_BYTES = 255  # what file systems take as one name
_swept: set[Path] = set()


class WriteError(OSError):
    """A path that cannot be written, and why; ``filename`` is the path, ``errno`` the system's number."""

    def __init__(self, path: str | os.PathLike, error: OSError):
        super().__init__(error.errno, error.strerror or str(error), os.fspath(path))

    def __str__(self) -> str:
        why = self.strerror or ""
        said = f"{self.filename}: cannot be written: {why[:1].lower()}{why[1:]}"
        if self.errno in (errno.ENOSPC, errno.EDQUOT):
            said += f" ({_free(self.filename)}free up space or name another place)"
        return said


def _free(path: str) -> str:
    for folder in Path(path).absolute().parents:
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB are free in {folder}; "
    return ""


def size_text(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def default_cache_dir(kind: str) -> str:
    """``$VERL_AIOPS_CACHE/KIND``, or a folder under the user's cache directory."""
    root = os.environ.get("VERL_AIOPS_CACHE") or os.path.join("~", ".cache", "verl-aiops")
    return os.path.join(os.path.expanduser(root), kind)


class _Digest(Protocol):
    """What `hashlib` makes, of which it names no type."""

    def update(self, data: bytes, /) -> object: ...


def feed(digest: _Digest, path: str | os.PathLike, told: Callable[[int], object] | None = None) -> None:
    """Put a file's bytes into a hash, a part at a time, since weights and data may be larger than memory.

    Args:
        told: is called with the size of each part.
    """
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
            if told is not None:
                told(len(part))


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Put a file in place whole; text is written as UTF-8, folders above are made.

    Raises:
        WriteError: it cannot be written; what was there before is still there.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | os.PathLike, *, folder: bool = False) -> Iterator[Path]:
    """A name beside ``path`` to write to: it takes the place of ``path`` if the block succeeds, and is removed if not.

    Args:
        folder: ``path`` is to be a folder; the temporary one is there already, and empty.

    Raises:
        WriteError: it cannot be written; what was there before is still there.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        with naming(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            if folder:
                temporary.mkdir()
            yield temporary
            move_into_place(temporary, path)
    finally:
        remove(temporary)


@contextmanager
def naming(path: str | os.PathLike, temporary: Path) -> Iterator[None]:
    """What fails in writing ``temporary``, or the folders above it, becomes a `WriteError` of ``path``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError) or not _is_about(error, temporary):
            raise  # something that the block reads, say
        raise WriteError(path, error) from error


def _is_about(error: OSError, temporary: Path) -> bool:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return True  # these come of writing alone, and often without a name
    named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    places = {str(temporary), *map(str, temporary.parents)}
    return any(name.startswith(str(temporary)) or name in places for name in named) or str(temporary) in str(error)


def temporary_beside(path: str | os.PathLike) -> Path:
    """A new name in the folder of ``path``; its random part keeps writers apart, on other machines too."""
    path = Path(path)
    sweep(path.parent)
    end = f".{secrets.token_hex(6)}{SUFFIX}"
    name = os.fsencode(f".{path.name}")[: _NAME_BYTES - len(end)]
    return path.with_name(name.decode("utf-8", "ignore") + end)


def move_into_place(temporary: Path, path: str | os.PathLike) -> None:
    """Flush a finished temporary file or folder to the disk and give it its name; an old folder goes away at once.

    Without the flush a machine that loses power can keep the new name and lose the content. Who may read it is what
    the process's umask says, whatever library wrote: safetensors since 0.8 makes files that nobody else can read.
    """
    path = Path(path)
    readable(temporary)
    if not temporary.is_dir():
        _flush(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)
        return
    for root, _, names in os.walk(temporary):
        for name in names:
            _flush(Path(root) / name)
        _flush_folder(Path(root))
    old = None
    if path.is_dir() and not path.is_symlink():  # a folder with something in it is not replaced by a rename
        old = temporary_beside(path)
        os.rename(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        if old is not None:
            os.rename(old, path)
        raise
    _flush_folder(path.parent)
    if old is not None:
        remove(old)


def readable(path: Path) -> None:
    """Let those read a file, or the files of a folder, who may read what this process writes otherwise."""
    named = [Path(root) / name for root, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    modes = {file: os.lstat(file).st_mode for file in named}
    private = [file for file, mode in modes.items() if stat.S_ISREG(mode) and not mode & 0o077]
    if not private:
        return
    # the umask can be asked for only by setting it, for all threads; a new file tells it too
    probe = temporary_beside(path)
    probe.touch()
    may_read = probe.stat().st_mode & 0o444
    probe.unlink()
    for file in private:
        os.chmod(file, stat.S_IMODE(modes[file]) | may_read)


def remove(path: Path) -> None:
    """Remove a temporary file or folder, as far as it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is a link, or lies behind one, to somewhere outside of it."""
    return not path.resolve().is_relative_to(folder.resolve())


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left in a folder a day ago or earlier; once a process and folder."""
    folder = folder.absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(SUFFIX):
                continue
            with contextlib.suppress(OSError):
                if time.time() - _newest(entry) > _STALE_S:
                    remove(Path(entry.path))


def _newest(entry: os.DirEntry) -> float:
    """When something was last written there: a folder's own time stands still while a file in it grows."""
    times = [entry.stat(follow_symlinks=False).st_mtime]
    if entry.is_dir(follow_symlinks=False):
        files = (os.path.join(root, name) for root, _, names in os.walk(entry.path) for name in names)
        times += [os.lstat(file).st_mtime for file in files]
    return max(times)


def _flush(path: Path) -> None:
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have no such call
            raise
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # many network file systems have none for folders
        _flush(folder)
