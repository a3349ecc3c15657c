"""What of verl we touch, in the verl that is installed: each by its name, and by its parameters where we call it."""

from __future__ import annotations

from collections.abc import Iterable

from verl_aiops.doctor.finding import FAULT, OK, Finding, error_text
from verl_aiops.missing import wanted

__all__ = ["check_touch_points"]

_GROUP = "touch points"


def check_touch_points() -> Iterable[Finding]:
    """One finding for all that are as we need them, one for each that is not. Imports modules; calls nothing."""
    import verl

    supported = wanted("verl")
    version = getattr(verl, "__version__", "of unknown version")
    number, wrong = 0, 0
    for path, said in _looked_at():
        number += 1
        if said is not None:
            wrong += 1
            advice = f"Made for {supported}; docs/verl_versions.md says what is known of other versions."
            yield Finding(_GROUP, FAULT, path, said, advice)
    if not wrong:
        yield Finding(_GROUP, OK, f"verl {version}", f"all {number} as {supported} has them")


def _looked_at() -> Iterable[tuple[str, str | None]]:
    """Each touch point with verl and TransferQueue, and what is wrong with it or None."""
    from verl_aiops.seam import engine, queue, replaced, reward_loop, rollout, trainer
    from verl_aiops.seam.documented import DOCUMENTED
    from verl_aiops.seam.need import Need, unmet
    from verl_aiops.verl_patches.overrides import OVERRIDES, check_override
    from verl_aiops.verl_patches.private import PRIVATE, is_there

    for table in (trainer, engine, queue, reward_loop, rollout, replaced):
        for need in table.NEEDS:
            yield need.path, unmet(need)
    for module, names in DOCUMENTED.items():
        for name in names:
            yield f"{module}:{name}", unmet(Need(module, name, ""))
    for override in OVERRIDES:
        if override.theirs.startswith("verl."):
            yield f"{override.theirs}.{override.name}", _said(check_override, override)
    for entry in PRIVATE:
        if entry.owner.startswith("verl."):
            yield f"{entry.owner}.{entry.name}", _said(_private, entry, is_there)


def _private(entry, is_there) -> None:
    if not is_there(entry):
        raise AttributeError(f"{entry.owner} has no {entry.name}")


def _said(check, *arguments) -> str | None:
    try:
        check(*arguments)
    except Exception as error:  # a module of verl's that cannot be imported may raise anything
        return error_text(error)
    return None
