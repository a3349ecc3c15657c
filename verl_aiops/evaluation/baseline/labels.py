"""What baselines say of further fields of the answer (severity, team): the usual label, or a logistic regression."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from verl_aiops.evaluation.baseline.asked import Asked
from verl_aiops.evaluation.baseline.linear import Linear, Model, best
from verl_aiops.evaluation.run.questions import Question
from verl_aiops.evaluation.run.rename_check import candidates_of
from verl_aiops.rewards.triage.answer import FIELDS

__all__ = ["Labels", "LinearLabels", "UsualLabels"]

Labels = tuple[tuple[str, str], ...]
"""Field and label, in the order of asking."""


def _asked(question: Question) -> list[str]:
    return [name for name in question.fields if name not in FIELDS]


class UsualLabels:
    """The most frequent label of the source, of all sources where it is new, among those that the row offers."""

    size = 0

    def fit(self, questions: Sequence[Question], asked: Sequence[Asked], services: Sequence[str]) -> None:
        """Learn from the training side; ``services`` are its true ones."""
        self._seen: defaultdict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
        for question, row in zip(questions, asked):
            for name in _asked(question):
                label = question.ground_truth.get(name)
                for source in {row.source, None} if label is not None else ():
                    self._seen[name, source][label] += 1
        self.size = sum(map(len, self._seen.values()))

    def answer(self, questions: Sequence[Question], asked: Sequence[Asked], services: Sequence[str]) -> list[Labels]:
        """The labels of each row; ``services`` are the chosen ones."""
        return [
            tuple((name, self._one(name, row, self._offered(question, name))) for name in _asked(question))
            for question, row in zip(questions, asked)
        ]

    def _offered(self, question: Question, name: str) -> list[str]:
        # nothing offered and nothing learned: any text, or there would be no answer to the other fields either
        return candidates_of(question.ground_truth, name) or sorted(self._seen[name, None]) or ["-"]

    def _one(self, name: str, row: Asked, offered: Sequence[str]) -> str:
        for source in (row.source, None):
            seen = self._seen[name, source]
            if any(seen[label] for label in offered):
                return max(offered, key=seen.__getitem__)
        return offered[0]


class LinearLabels(UsualLabels):
    """A logistic regression for each field, over what `Linear` tells an incident's type by; of what it has not learned,
    the usual label."""

    def fit(self, questions: Sequence[Question], asked: Sequence[Asked], services: Sequence[str]) -> None:
        super().fit(questions, asked, services)
        self._features, self._models = Linear(), {}
        for name in dict.fromkeys(name for question in questions for name in _asked(question)):
            known = [at for at, question in enumerate(questions) if question.ground_truth.get(name) is not None]
            if known:
                model = self._models[name] = Model()
                rows = (self._features.of_incident(asked[at], services[at]) for at in known)
                model.fit(rows, [questions[at].ground_truth[name] for at in known])
                self.size += model.size

    def answer(self, questions: Sequence[Question], asked: Sequence[Asked], services: Sequence[str]) -> list[Labels]:
        usual = super().answer(questions, asked, services)
        scores = {name: model.scores(self._all(asked, services)) for name, model in self._models.items()}
        found = []
        for at, (question, labels) in enumerate(zip(questions, usual)):
            own = []
            for name, label in labels:
                of_label = {known: values[at] for known, values in scores.get(name, {}).items()}
                offered = self._offered(question, name)
                own.append((name, best(offered, of_label) if of_label.keys() & set(offered) else label))
            found.append(tuple(own))
        return found

    def _all(self, asked: Sequence[Asked], services: Sequence[str]) -> Iterator[Iterator[str]]:
        return (self._features.of_incident(row, service) for row, service in zip(asked, services))
