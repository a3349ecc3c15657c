"""Files that are whole or not there."""

import ast
import errno
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from verl_aiops import files
from verl_aiops.files import SUFFIX, WriteError, replacing, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "text", "größer\n")
    write_atomically(tmp_path / "a" / "b" / "text", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == b"\x00\xff" and names(tmp_path / "a" / "b") == ["text"]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["x" * 255, "字" * 85, ".hidden"])
def test_names_as_long_as_a_file_system_takes(tmp_path, name):
    write_atomically(tmp_path / name, "whole")
    assert names(tmp_path) == [name]


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    write_atomically(tmp_path / "file", "x")
    assert order[0].endswith(SUFFIX) and order[1:] == ["rename", str(tmp_path)]
    order.clear()
    with replacing(tmp_path / "folder", folder=True) as made:
        (made / "inside").write_text("x")
    assert order[0].endswith(f"{SUFFIX}/inside") and order[-2:] == ["rename", str(tmp_path)]


@pytest.mark.parametrize("folder", [False, True])
def test_what_failed_leaves_the_old_and_nothing_else(tmp_path, folder):
    with replacing(tmp_path / "kept", folder=folder) as made:
        (made / "old" if folder else made).write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "kept", folder=folder) as made:
        (made / "new" if folder else made).write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["kept"]
    assert (names(tmp_path / "kept") == ["old"]) if folder else ((tmp_path / "kept").read_text() == "old")


def test_a_folder_takes_the_place_of_one_with_other_files(tmp_path):
    for name in ("first", "second"):
        with replacing(tmp_path / "model", folder=True) as made:
            (made / name).write_text(name)
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["second"]


def test_writers_with_one_process_number_do_not_meet(tmp_path):
    """As on two machines that share a folder, or in two containers."""
    failed = []

    def write(content):
        try:
            for _ in range(100):
                write_atomically(tmp_path / "shared", content)
        except OSError as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(letter * 1000,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed and len(set((tmp_path / "shared").read_text())) == 1 and names(tmp_path) == ["shared"]


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swept", set())
    killed = "import os, sys; from verl_aiops.files import replacing\nwith replacing(sys.argv[1]) as t:\n"
    killed += "    t.touch(); os._exit(1)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", killed, str(tmp_path / "file")])
    old, young = sorted(tmp_path.iterdir())
    before = time.time() - 2 * 86400
    os.utime(old, (before, before))
    growing = tmp_path / f".folder.0{SUFFIX}"
    growing.mkdir()
    (growing / "being written").touch()
    os.utime(growing, (before, before))
    (tmp_path / ".other.tmp").touch()
    os.utime(tmp_path / ".other.tmp", (before, before))
    write_atomically(tmp_path / "file", "x")
    assert names(tmp_path) == sorted([young.name, growing.name, ".other.tmp", "file"])


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(WriteError, match="no space left on device.*free up space") as raised, replacing(tmp_path / "f"):
        with open("/dev/full", "w") as full:
            full.write("x")
    assert str(tmp_path / "f") in str(raised.value) and raised.value.errno == errno.ENOSPC


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError) as raised:
        write_atomically(tmp_path / "file" / "below", "x")
    assert str(raised.value).startswith(f"{tmp_path}/file/below: cannot be written: ")
    with pytest.raises(WriteError, match="directory"):
        (tmp_path / "folder" / "full").mkdir(parents=True)
        write_atomically(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


def test_what_cannot_be_read_is_not_called_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "out"):
        Path(tmp_path / "in").read_text()
    assert not isinstance(raised.value, WriteError)


def test_it_needs_the_standard_library_alone():
    nodes = list(ast.walk(ast.parse(Path(files.__file__).read_text(encoding="utf-8"))))
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in named} <= sys.stdlib_module_names


def test_nobody_writes_by_hand():
    """One way to put a file in place: temporaries of another name would not be swept."""
    package = Path(files.__file__).parent
    own = re.compile(r"getpid\(\)|os\.replace\(|NamedTemporaryFile|mkstemp|shutil\.move")
    by_hand = [p for p in package.rglob("*.py") if own.search(p.read_text(encoding="utf-8"))]
    assert {str(p.relative_to(package)) for p in by_hand} == {"files.py"}


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_what_a_library_makes_private_is_as_readable_as_what_is_written_otherwise(tmp_path, mask, mode):
    """safetensors since 0.8, and whatever else writes by way of `tempfile`."""
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "model", folder=True) as folder:
            (folder / "deep").mkdir()
            for name in ("weights", "deep/adapter"):
                (folder / name).touch(mode=0o600)
            (folder / "script").touch(mode=0o755)
            (folder / "link").symlink_to("nowhere")
        with replacing(tmp_path / "file") as file:
            file.touch(mode=0o600)
    finally:
        os.umask(before)
    made = [tmp_path / name for name in ("model/weights", "model/deep/adapter", "file")]
    assert [path.stat().st_mode & 0o777 for path in made] == [mode] * 3
    assert (tmp_path / "model" / "script").stat().st_mode & 0o777 == 0o755 & ~mask
    assert sorted(os.listdir(tmp_path / "model")) == ["deep", "link", "script", "weights"]
