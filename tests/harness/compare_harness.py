"""For the tests of `verl-aiops compare`: what `verl-aiops eval` writes of models that are right by chance."""

import json
import random
from dataclasses import dataclass, replace

from eval_harness import questions_of, quoting, right_answer

from verl_aiops.evaluation.run.backend import Generation
from verl_aiops.evaluation.run.evaluate import EvaluationPlan, evaluate
from verl_aiops.evaluation.run.questions import fingerprint

__all__ = [
    "Guessing",
    "evaluated",
    "in_faults",
    "lines_of",
    "questions_of",
    "right_answer",
    "wrong_answer",
    "write_lines",
]


def wrong_answer(question, rng):
    """Another service or type of the same system, or both."""
    truth = question.ground_truth
    said = {key: truth[key] for key in ("service", "incident_type")}
    candidates = truth.get("candidates") or {}
    for key in rng.choice([("service",), ("incident_type",), ("service", "incident_type")]):
        others = [name for name in candidates.get(key, ()) if name != truth[key]] or ["something-else"]
        said[key] = rng.choice(others)
    return json.dumps(said)


@dataclass
class Guessing:
    """A backend that is right, writes JSON and quotes each with a given probability.

    An incident is harder or easier for every model alike. `says(job)` replaces the rounds, `fails(job)` the answer.
    """

    skill: float
    form: float = 0.95
    quotes: float = 0.6
    seed: int = 0
    says: object = lambda job: None
    fails: object = lambda job: None

    def check(self, questions):
        pass

    def generate(self, jobs, done):
        for job in jobs:
            ease = random.Random(f"ease/{job.question.id}").uniform(-0.35, 0.35)
            rng = random.Random(f"{self.seed}/{job.question.id}/{job.sample}")
            error = self.fails(job)
            if error:
                done(job, Generation(error=error))
                continue
            rounds = self.says(job) or self._rounds(job, rng, ease)
            done(
                job, Generation(list(rounds), [rng.random() < 0.04, False], [rng.randint(40, 160), rng.randint(15, 30)])
            )

    def _rounds(self, job, rng, ease):
        question = job.question
        thought = quoting(question) if rng.random() < self.quotes else "Something is slow; I see no error."
        if rng.random() > self.form:
            return [thought, "The root cause is probably the database."]
        return [thought, right_answer(question) if rng.random() < self.skill + ease else wrong_answer(question, rng)]


def evaluated(folder, questions, backend, samples=1, **settings):
    """Run an evaluation with the backend; returns the folder as text."""
    settings = {"model": folder.name, "temperature": 0.0, **settings}
    settings |= {"questions": fingerprint(questions), "n": samples}
    evaluate(questions, backend, folder, EvaluationPlan(samples=samples, max_failed_share=1.0), settings)
    return str(folder)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


def write_lines(folder, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "generations.jsonl").write_text(text, encoding="utf-8")


def in_faults(questions):
    """The questions with two of them to a fault."""
    return [replace(question, group=questions[at // 2 * 2].id) for at, question in enumerate(questions)]
