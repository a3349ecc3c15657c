"""A list of checks, run one after another before Ray starts, and one message with everything that they find.

A check is a function of the configuration and of the `Run` that all checks of a list share. It fills in what the user
left open, and gives back what keeps the run from starting. The lists stand in `offline`, `online`, `rl` and `rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.platform.cluster import ClusterError
from verl_aiops.trainers.config import ConfigError, PreferenceConfig
from verl_aiops.trainers.runs.finite import NotFiniteError

__all__ = ["Check", "Look", "Run", "run_checks"]

# what a check may raise instead of giving it back; errors of other kinds are ours, and are not hidden
_FAULTS = (ConfigError, ClusterError, PreferenceDataError, NotFiniteError)


@dataclass
class Run:
    """What the checks of a run hand on to each other.

    Attributes:
        kind: ``"dpo"``, ``"rm"``, ``"online_dpo"``, ``"triage"``, or ``"rows"`` for a run that wants our engine alone.
        given: keys that the command line sets, which no default overrides.
        lines: what the user is shown at the start, a line for each key that was filled in.
        failed: checks that found something, or could not be made.
        settings: the section ``algorithm.dpo``, ``algorithm.rm`` or ``algorithm.online_dpo``, by
            `preference.check_settings`.
        tokenizer: of the policy, by `basics.check_tokenizer`.
        start: the checkpoint that the run goes on from, by `basics.check_start`; None for a run from the beginning.
        rules: what a row of prompts needs, by the check that reads them.
        rows: the first of these rows; None where they could not be looked at here.
    """

    kind: str
    given: set[str]
    lines: list[str] = field(default_factory=list)
    failed: set[Look] = field(default_factory=set)
    settings: PreferenceConfig | None = None
    tokenizer: Any = None
    start: str | None = None
    rules: Any = None
    rows: list[dict[str, Any]] | None = None

    @property
    def preference(self) -> bool:
        """Whether it is one of the preference trainers'."""
        return self.kind in ("dpo", "rm", "online_dpo")


Look = Callable[[DictConfig, Run], "Iterable[str] | None"]


@dataclass(frozen=True)
class Check:
    """One entry of a list.

    Attributes:
        look: gives back or raises what is wrong.
        what: what is looked at, in the words of the message that it could not be.
        needs: checks before this one, without which it would only find what follows from theirs.
        last: made only where nothing at all is wrong.
    """

    look: Look
    what: str
    needs: tuple[Look, ...] = ()
    last: bool = False


def run_checks(checks: Sequence[Check], config: DictConfig, run: Run) -> list[str]:
    """Make all checks that can be made.

    Returns:
        `Run.lines`.

    Raises:
        ConfigError: everything that is wrong, in one message. A single fault that was raised is raised as it is.
        NothingLeft: the run is finished.
    """
    faults: list[str | Exception] = []
    left: list[str] = []
    for check in checks:
        if (check.last and run.failed) or not run.failed.isdisjoint(check.needs):
            run.failed.add(check.look)
            left.append(check.what)
            continue
        try:
            found = list(check.look(config, run) or ())
        except _FAULTS as error:
            found = [error]
        if found:
            run.failed.add(check.look)
            faults += found
    if not faults:
        return run.lines
    if len(faults) == 1 and isinstance(faults[0], Exception):
        raise faults[0]
    raise ConfigError(_message([str(fault) for fault in faults], left))


def _message(faults: list[str], left: list[str]) -> str:
    if len(faults) == 1:
        return faults[0]
    lines = [f"{len(faults)} things keep this run from starting:"]
    for number, fault in enumerate(faults, 1):
        lines.append(f"{number}. " + fault.replace("\n", "\n   "))
    if left:
        lines.append(f"not looked at before these are mended: {', '.join(dict.fromkeys(left))}")
    return "\n  ".join(lines)
