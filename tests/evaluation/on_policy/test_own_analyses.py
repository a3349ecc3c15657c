"""Near misses after the model's own analyses: what stood there when it was asked stands there in training."""

import json

import pytest
from eval_harness import Knowing
from written_rows import rows_in

from verl_aiops.cli.main import main
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.on_policy.analyses import own_analyses
from verl_aiops.evaluation.run.backend import Generation
from verl_aiops.evaluation.run.evaluate import EvaluationPlan, evaluate
from verl_aiops.evaluation.run.questions import fingerprint, read_rl_questions
from verl_aiops.incidents import (
    IncidentError,
    PromptOptions,
    Simulator,
    build_prefs,
    build_rl,
    build_sft,
    simulator_source,
)

PROMPTS = PromptOptions(budget=300, max_candidates=4)
SPLIT = {"val_share": 0.3, "seed": 2}


def source():
    return simulator_source(Simulator(seed=3, lang="mix", difficulty="mix"), 40)


class Analysing(Knowing):
    """Says of each incident what nobody else would, and nothing at all of some."""

    def __init__(self, silent=()):
        super().__init__()
        self.silent = silent

    def generate(self, jobs, done):
        for job in jobs:
            cut = job.question.id in self.silent
            texts = [f"Of {job.question.id}, try {job.sample}: <|im_end|> it is slow.", "{}"]
            done(job, Generation(texts, [cut, False], None))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Both sides of `build-rl`, and an evaluation of each; one incident's answers were cut off."""
    base = tmp_path_factory.mktemp("asked")
    build_rl(source(), base / "rl.parquet", prompts=PROMPTS, **SPLIT)
    silent = [read_rl_questions(str(base / "rl.parquet"))[0].id]
    for name in ("rl", "rl.val"):
        data = base / f"{name}.parquet"
        questions = read_rl_questions(str(data))
        settings = {"data": str(data), "questions": fingerprint(questions)}
        evaluate(questions, Analysing(silent), base / f"eval_{name}", EvaluationPlan(samples=2), settings)
    return base, silent


def test_the_own_analysis_stands_after_the_prompt_that_was_asked(asked, tmp_path):
    base, silent = asked
    analyses = own_analyses([base / "eval_rl", base / "eval_rl.val"])
    summary = build_prefs(source(), tmp_path / "p.parquet", prompts=PROMPTS, analyses=analyses, **SPLIT)
    build_prefs(source(), tmp_path / "plain.parquet", prompts=PROMPTS, **SPLIT)
    assert "1 incident left out: no analysis" in str(summary)
    for side in ("", ".val"):
        questions = {q.id: q for q in read_rl_questions(str(base / f"rl{side}.parquet"))}
        made, plain = rows_in(tmp_path / f"p{side}.parquet"), rows_in(tmp_path / f"plain{side}.parquet")
        ids = {row["id"].partition("#")[0] for row in made}
        assert ids == set(questions) - set(silent)
        for row in made:
            question = questions[row["id"].partition("#")[0]]
            first, analysis, last = row["prompt"]
            assert first == question.messages[0] and last["content"] == question.rounds[0]
            # the first sample's, without what a chat template would take for its own
            assert analysis["content"].startswith(f"Of {question.id}, try 0: ")
            assert "<|im_end|>" not in analysis["content"] and analysis["content"].endswith("it is slow.")
            assert row["incident_text"] == question.incident_text
            assert json.loads(row["ground_truth"]) == question.ground_truth
        assert {row["chosen"][0]["content"] for row in made} <= {row["chosen"][0]["content"] for row in plain}


@pytest.mark.parametrize("form", ["groups", "labels"])
def test_other_forms_have_it_too(asked, tmp_path, form):
    base, _ = asked
    analyses = own_analyses([base / "eval_rl", base / "eval_rl.val"])
    build_prefs(source(), tmp_path / "p.parquet", prompts=PROMPTS, form=form, analyses=analyses, **SPLIT)
    assert all(row["prompt"][1]["content"].startswith("Of ") for row in rows_in(tmp_path / "p.parquet"))


def test_a_side_that_was_not_asked_is_refused_with_the_reason(asked, tmp_path):
    base, _ = asked
    with pytest.raises(Exception, match="validation .*none of the .* has an analysis to use"):
        build_prefs(
            source(), tmp_path / "p.parquet", prompts=PROMPTS, analyses=own_analyses([base / "eval_rl"]), **SPLIT
        )
    # asked with other candidates: a verdict after them would answer another question
    other = PromptOptions(budget=300, max_candidates=3)
    both = own_analyses([base / "eval_rl", base / "eval_rl.val"])
    with pytest.raises(IncidentError, match="none of the .* has an analysis to use"):
        build_prefs(source(), tmp_path / "q.parquet", prompts=other, analyses=both, **SPLIT)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_fault_that_the_model_was_trained_on_is_refused(asked, tmp_path):
    base, _ = asked
    build_sft(source(), tmp_path / "sft.parquet", prompts=PROMPTS, **SPLIT)
    with pytest.raises(EvaluationError, match="may answer them from memory"):
        own_analyses([base / "eval_rl"], trained_on=[tmp_path / "sft.parquet"])
    with pytest.raises(EvaluationError, match="one for each of the 1 folders"):
        own_analyses([base / "eval_rl"], data=["a", "b"])


def test_the_command(asked, tmp_path, capsys):
    base, _ = asked
    common = ["--num-incidents", "40", "--seed", "2", "--max-chars", "300", "--max-candidates", "4"]
    options = ["build-prefs", "--out", str(tmp_path / "p.parquet"), "--val-share", "0.3", *common]
    folders = ["--analyses", str(base / "eval_rl"), str(base / "eval_rl.val")]
    assert main([*options, *folders, "--style", "direct"]) == 2
    assert "--analyses: has no meaning with --style direct" in capsys.readouterr().err
    assert main([*options, "--trained-on", "x"]) == 2
    assert "--trained-on goes with --from-generations or --analyses" in capsys.readouterr().err
    bare = ["build-prefs", "--out", str(tmp_path / "p.parquet"), "--from-generations", str(base / "eval_rl")]
    assert main([*bare, *folders]) == 2
    assert "--analyses: has no meaning with --from-generations" in capsys.readouterr().err
    build_rl(simulator_source(Simulator(seed=2), 40), tmp_path / "rl.parquet", prompts=PROMPTS, **SPLIT)
    made = []
    for name in ("rl", "rl.val"):
        questions = read_rl_questions(str(tmp_path / f"{name}.parquet"))
        made.append(str(tmp_path / f"eval_{name}"))
        evaluate(questions, Analysing(), made[-1], EvaluationPlan(), {"data": str(tmp_path / f"{name}.parquet")})
    assert main([*options, "--analyses", *made]) == 0
    assert rows_in(tmp_path / "p.parquet")[0]["prompt"][1]["content"].startswith("Of ")
