"""What the scripts that serve a model have in common: a folder to serve, and a server that is watched until it answers.

    python3 -m verl_aiops.models.serving folder MODEL [--out DIR] [--template FILE] [--dry-run]
    python3 -m verl_aiops.models.serving run --url http://127.0.0.1:8000 --wait 600 [--dry-run] -- COMMAND ...

The first prints the folder, after merging verl's shards where MODEL is a checkpoint. The second starts COMMAND, says
when the server is ready, passes on signals, and returns its exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from urllib.parse import urlsplit

from verl_aiops.files import replacing
from verl_aiops.inputs.json_text import JsonFault, read_object_file
from verl_aiops.models.folders import ModelFolder, find_model, merge_checkpoint

__all__ = ["ServingError", "has_chat_template", "run_server", "servable_folder"]

NOTE = "merged_from.json"
_POLL_S = 1.0
_STOP_S = 30.0
_SECRET_FLAG = "--api-key"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServingError(ValueError):
    """A model that cannot be served, or a server that did not start; says how to mend it."""


def servable_folder(path: str, out: str | None = None, template: str | None = None, dry_run: bool = False) -> Path:
    """The folder that a server is to load for the model in ``path``.

    Args:
        path: a folder of transformers, or verl's ``global_step_N`` or its ``actor``. Such a checkpoint is merged, in
            bfloat16, into ``out`` (default: beside the shards, with ``_merged`` at the end of the name) unless that
            was done before from the same files.
        template: a chat template that replaces the tokenizer's.
        dry_run: say where the folder will be, merge nothing.

    Raises:
        ModelFolderError: no model that can be used.
        ServingError: no chat template; ``out`` is a folder of something else.
    """
    model = find_model(path)
    if template is not None and not Path(template).is_file():
        raise ServingError(f"CHAT_TEMPLATE {template}: no such file")
    if template is None and not has_chat_template(model.settings):
        raise ServingError(
            f"{model.settings}: the tokenizer has no chat template, which conversations need. Name the one of its "
            "training with CHAT_TEMPLATE=FILE.jinja"
        )
    if model.shards is None:
        return model.settings
    target = Path(out).expanduser() if out else model.shards.with_name(f"{model.shards.name}_merged")
    if not dry_run and _merged_from(target) != model.fingerprint():
        _merge(model, target)
    return target


def has_chat_template(folder: Path) -> bool:
    """Whether a tokenizer's folder holds a chat template in one of the places that transformers knows."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return bool(read_object_file(folder / "tokenizer_config.json").get("chat_template"))
    except (OSError, JsonFault):
        return False


def _merged_from(target: Path) -> str | None:
    """The fingerprint of the checkpoint that was merged into a folder; None where there is nothing."""
    if not target.exists():
        return None
    try:
        return str(read_object_file(target / NOTE)["fingerprint"])
    except (OSError, JsonFault, KeyError):
        raise ServingError(
            f"{target}: is there already, and was not merged by this command (it has no {NOTE}). Name another folder "
            "with MERGED=DIR, or remove it"
        ) from None


def _merge(model: ModelFolder, target: Path) -> None:
    note = {"from": model.path, "fingerprint": model.fingerprint()}
    with replacing(target, folder=True) as partial:
        with redirect_stdout(sys.stderr):  # stdout holds the folder's name alone
            merge_checkpoint(str(model.shards), str(partial), trust_remote_code=False)
        (partial / NOTE).write_text(json.dumps(note), encoding="utf-8")


def shown(command: Sequence[str]) -> str:
    """A command as one types it, without the key."""
    parts = list(command)
    for at, part in enumerate(parts[:-1]):
        if part == _SECRET_FLAG:
            parts[at + 1] = "***"
    return shlex.join(parts)


def run_server(command: Sequence[str], url: str, wait_s: float) -> int:
    """Start a server, wait until its ``/health`` answers, then for its end.

    SIGINT, SIGTERM and SIGHUP go on to the server, which has 30 s to stop.

    Args:
        url: where it will listen, without a path.
        wait_s: seconds that it may take to become ready.

    Returns:
        its exit code; that of a signal as in the shell, 128 + number.

    Raises:
        ServingError: the address is taken, the program is missing, or the server ended or timed out before it was
            ready.
    """
    where = urlsplit(url)
    if _listens(where.hostname or "", where.port or 80):
        raise ServingError(f"{url}: something listens there already; stop it, or choose another PORT")
    try:
        # in a session of its own, or Ctrl-C would reach it twice
        server = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        raise ServingError(f"{command[0]}: {error.strerror}; is the server installed?") from None
    asked: list[int] = []
    asked_at: list[float] = []

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        asked_at.append(time.monotonic())
        server.send_signal(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        started = time.monotonic()
        while not _healthy(url):
            if server.poll() is not None:
                if asked:
                    return 128 + asked[0]
                raise ServingError(
                    f"the server ended with exit code {server.returncode} before it was ready; see above"
                )
            if asked and time.monotonic() - asked_at[0] > _STOP_S:
                return 128 + asked[0]  # the end is in `finally`
            if time.monotonic() - started > wait_s:
                raise ServingError(f"{url}/health: no answer in {wait_s:g} s (WAIT); see the server's messages above")
            time.sleep(_POLL_S)
        print(f"ready after {time.monotonic() - started:.0f} s: {url}/v1", file=sys.stderr, flush=True)
        while (code := server.poll()) is None:
            if asked and time.monotonic() - asked_at[0] > _STOP_S:
                _end(server, at_once=True)
            time.sleep(_POLL_S)
        return 128 + asked[0] if asked else code if code >= 0 else 128 - code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _end(server, at_once=bool(asked_at) and time.monotonic() - asked_at[0] > _STOP_S)


def _end(server: subprocess.Popen, at_once: bool = False) -> None:
    """End a server and what it has started; one that has had its 30 s already, ``at_once``."""
    if server.poll() is None and not at_once:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_S)
    # its own processes too, if it left any behind
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="verl_aiops.models.serving", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    folder = commands.add_parser("folder", help="print the folder to serve")
    folder.add_argument("model")
    folder.add_argument("--out", help="where a checkpoint is merged to")
    folder.add_argument("--template", help="a chat template that replaces the tokenizer's")
    run = commands.add_parser("run", help="start a server and say when it is ready")
    run.add_argument("--url", required=True)
    run.add_argument("--wait", type=float, default=600.0)
    run.add_argument("server", nargs="+", metavar="-- COMMAND")
    for each in (folder, run):
        each.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    try:
        if args.command == "folder":
            print(servable_folder(args.model, args.out or None, args.template or None, args.dry_run))
            return 0
        if args.dry_run:
            print(shown(args.server))
            return 0
        print(shown(args.server), file=sys.stderr, flush=True)
        return run_server(args.server, args.url, args.wait)
    except (ValueError, OSError) as error:
        print(f"serving: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
