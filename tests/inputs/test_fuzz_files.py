"""Damaged files of every kind that a user can have: each is read, or refused by a message that names it."""

import logging
import random
import re
import time
import traceback
import warnings

import pytest
from fuzz_mutations import mutate
from fuzz_targets import targets

LONGEST_S = 20  # a file of a few lines; reading it takes milliseconds
# what would move a terminal's cursor, or end the line; a message may have lines of its own
_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def fault_of(target, name):
    """What is wrong with how `target` took the file `name`, or None."""
    try:
        message = target.run(name)
    except target.raises as error:
        message = str(error)
    except (Exception, RecursionError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]
        return f"{type(error).__name__} {str(error)[:100]!r} at {' '.join(places[-4:])}"
    if message is None or not isinstance(message, str):
        return None
    if "Traceback" in message:
        return f"a traceback in {message[:300]!r}"
    if _RAW.search(message):
        return f"a raw control character in {message[:300]!r}"
    if not any(part in message for part in target.named(name)):
        return f"no name of the file in {message[:300]!r}"
    return None


def fuzz(folder, tokenizer, count, seed, plots):
    """Damage `count` files, equally many for each target; yields target, trial, file, fault and content of faults."""
    everything = list(targets(folder, tokenizer, plots))
    for target in everything:
        for trial in range(-(-count // len(everything))):
            rng = random.Random(f"{seed}/{target.name}/{trial}")
            name = rng.choice(target.files)
            damaged = mutate(name, target.contents[name], rng)
            (target.folder / name).write_bytes(damaged)
            begun = time.monotonic()
            fault = fault_of(target, name)
            took = time.monotonic() - begun
            if took > LONGEST_S:
                fault = f"{took:.0f} s"
            if fault:
                yield target.name, trial, name, fault, damaged
            target.restore()


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def check(folder, tokenizer, count, seed, plots=False):
    faults = [f"{target} {trial}, {name}: {fault}" for target, trial, name, fault, _ in
              fuzz(folder, tokenizer, count, seed, plots)]  # fmt: skip
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:40])


def test_some_damaged_files(tmp_path, tokenizer):
    check(tmp_path, tokenizer, 400, seed=1)


@pytest.mark.slow
def test_twenty_thousand_damaged_files(tmp_path, tokenizer):
    check(tmp_path, tokenizer, 20_000, seed=2, plots=True)
