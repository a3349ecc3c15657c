"""How far the root causes and the path of a verdict are the true ones."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from verl_aiops.rewards.investigation.ground_truth import Cause, InvestigationTruth
from verl_aiops.rewards.investigation.verdict import Verdict

__all__ = ["Matched", "agreement", "match_causes", "names_of", "path_of"]


class Matched(NamedTuple):
    """Predicted and true causes, paired one to one so that as many as can be are right.

    Attributes:
        predicted, true: how many there are of each.
        components: pairs whose component is right.
        exact: those of them whose reason is right too, or not known to the row.
        right: the numbers of the predicted causes in these pairs.
        any_service: a true cause's component is among the predicted ones; all_services: all of them are.
    """

    predicted: int
    true: int
    components: int
    exact: int
    right: frozenset[int]
    any_service: bool
    all_services: bool

    def credit(self, reason_credit: float) -> float:
        """What the pairs are worth: 1 each, and ``reason_credit`` of it where the reason is wrong."""
        return self.exact + reason_credit * (self.components - self.exact)


def match_causes(verdict: Verdict, truth: InvestigationTruth) -> Matched:
    """Pair the causes of a verdict with the true ones."""
    left = dict(enumerate(verdict.causes))
    open_causes = list(truth.causes)
    right: set[int] = set()

    def take(fits: Callable[[tuple[str, str], Cause], bool]) -> int:
        taken = 0
        for cause in tuple(open_causes):
            found = next((at for at, named in left.items() if fits(named, cause)), None)
            if found is not None:
                right.add(found)
                del left[found]
                open_causes.remove(cause)
                taken += 1
        return taken

    # Names of one thing are the same for all causes, so taking the narrowest fit first leaves as many as can be for
    # the wider ones: a reason that is known, then causes whose reason is not known, then the component alone.
    exact = take(lambda named, cause: named[0] in cause.components and named[1] in cause.reasons)
    exact += take(lambda named, cause: named[0] in cause.components and not cause.reasons)
    loose = take(lambda named, cause: named[0] in cause.components)
    services = {component for component, _ in verdict.causes}
    named = [not services.isdisjoint(cause.components) for cause in truth.causes]
    return Matched(
        len(verdict.causes),
        len(truth.causes),
        exact + loose,
        exact,
        frozenset(right),
        any(named),
        bool(named) and all(named),
    )


def agreement(right: float, predicted: int, true: int, found: float | None = None) -> float:
    """Precision times recall, from 0 to 1: what is paid for a set.

    F1 would pay for listing: of n names that are equally likely to be the one cause, a guess has an F1 of 1 / n on
    average, and all of them together 2 / (n + 1). By this both are worth 1 / n.

    Args:
        right: what the right ones among the predicted are worth.
        found: how many of the true ones are found, where that is not the same.
    """
    if not predicted or not true:
        return 0.0
    return right / predicted * (right if found is None else found) / true


def path_of(verdict: Verdict, truth: InvestigationTruth) -> tuple[int, int, int]:
    """Right, predicted and true edges; a component's other names count as its label."""
    predicted = {tuple(_label(end, truth) for end in edge) for edge in verdict.edges}
    return len(predicted & truth.edges), len(predicted), len(truth.edges)


def _label(name: str, truth: InvestigationTruth) -> str:
    return truth.label.get(name, name)


def names_of(component: str, causes: Collection[Cause]) -> frozenset[str]:
    """All names of a predicted component that the row knows, itself among them."""
    known = (cause.components for cause in causes if component in cause.components)
    return next(known, frozenset()) | {component}
