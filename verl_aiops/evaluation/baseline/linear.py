"""The candidate-line logistic regression: one linear model for the service, one for the incident type.

Service. Every candidate of a row is an example of its own: the words and pairs of neighbouring words of the lines that
name it, its name masked and all others masked too, then its name, and every word of the incident crossed with its name
(which services fail here, and what is said when no line names them). The candidate with the highest score wins. Of a
system that training has not seen, the masked lines alone speak.

Type. Words and pairs of the chosen service's lines, all words of the incident, the service and the source; of the types
that the row offers the most probable one wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from verl_aiops.evaluation.baseline.asked import Asked, changes, pairs_of, words_of
from verl_aiops.evaluation.baseline.simple import Answer
from verl_aiops.evaluation.errors import EvaluationError

__all__ = ["Linear", "Model", "need_scikit_learn"]

_LEAST_ROWS = 2
_STEPS = 300


def need_scikit_learn() -> None:
    """Raises:
    EvaluationError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise EvaluationError(
            'the linear baselines need scikit-learn: pip install "verl-aiops[baseline]", or leave them out with '
            "--methods majority,rule"
        ) from None


class Linear:
    """With ``values`` a line also says how far each number is from its usual value (a power of two), and a candidate
    when it is first named; names are then crossed with the incident's words only where no line names them."""

    def __init__(self, values: bool = False):
        self._values = values

    def fit(self, asked: Sequence[Asked], truths: Sequence[Answer]) -> None:
        services = Model()
        services.fit(
            (self._of_candidate(row, name) for row in asked for name in row.services),
            [name == service for row, (service, _) in zip(asked, truths) for name in row.services],
        )
        types = Model()
        types.fit(
            (self.of_incident(row, service) for row, (service, _) in zip(asked, truths)), [kind for _, kind in truths]
        )
        self._services, self._types = services, types
        self.size = services.size + types.size

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        found = self._services.scores(self._of_candidate(row, name) for row in asked for name in row.services)
        scores = iter(found.get(True, []))
        services = [best(row.services, {name: next(scores, 0.0) for name in row.services}) for row in asked]
        types = self._types.scores(self.of_incident(row, service) for row, service in zip(asked, services))
        return [
            (service, best(row.types, {kind: types[kind][at] for kind in row.types if kind in types}))
            for at, (row, service) in enumerate(zip(asked, services))
        ]

    def _of_candidate(self, row: Asked, name: str) -> Iterator[str]:
        named = name in row.order
        yield from self._said(row, name)
        yield f"name={name}"
        yield f"named={named}"
        if self._values:
            yield f"order={row.order.get(name)}"
        if not (self._values and named):
            yield from (f"{name}|{word}" for line in row.masked for word in words_of(line))

    def of_incident(self, row: Asked, service: str) -> Iterator[str]:
        """What tells an incident's type, once its service is chosen."""
        yield from (f"own:{feature}" for feature in self._said(row, service))
        yield from (word for line in row.masked for word in words_of(line))
        yield f"service={service}"
        yield f"source={row.source}"

    def _said(self, row: Asked, service: str) -> Iterator[str]:
        for line in row.lines_of(service):
            words = words_of(line)
            yield from words
            yield from pairs_of(words)
            if self._values:
                for name, times in changes(line):
                    yield f"{name}:{times}"
                    yield f":{times}"


def best(offered: Sequence[str], scores: dict[str, float]) -> str:
    """The offered name with the highest score, the first of them where none has any."""
    return max((name for name in offered if name in scores), key=scores.__getitem__, default=offered[0])


class Model:
    """Logistic regression over which features a row has. Of rows with one and the same label nothing is learned."""

    def fit(self, rows: Iterable[Iterable[str]], labels: Sequence[Any]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression

        # A feature of one row alone only helps to know that row again.
        least = min(_LEAST_ROWS, len(labels))
        self._features = CountVectorizer(analyzer=_with_bias, binary=True, min_df=least)
        table = self._features.fit_transform(rows)
        self.size = table.shape[1]
        self._model = None
        if len(set(labels)) > 1:
            # scikit-learn's own prior on the weights: nothing here was chosen by looking at answers
            self._model = LogisticRegression(max_iter=_STEPS).fit(table, labels)

    def scores(self, rows: Iterable[Iterable[str]]) -> dict[Any, list[float]]:
        """For each label of training the log-odds of every row, up to what all labels of a row share."""
        if self._model is None:
            return {}
        found = self._model.decision_function(self._features.transform(rows))
        if found.ndim == 1:
            return dict(zip(self._model.classes_.tolist(), ((-found).tolist(), found.tolist())))
        return dict(zip(self._model.classes_.tolist(), found.T.tolist()))


def _with_bias(features: Iterable[str]) -> Iterator[str]:
    # so that rows without a single word have a feature too
    yield "always"
    yield from features
