"""An option's default stands on the command line, which must not import what takes it only to read it there, and again
beside what takes it: both are the same."""

import argparse
import importlib
import inspect

import pytest

from verl_aiops.cli.main import make_parser

PROMPTS = {"max_chars": "budget", "no_candidates": None, "answer_fields": "more_fields", "prompts": "wording"}
TAKEN = [
    ("eval", "evaluation.run.backend.SamplingOptions", {}),
    ("eval", "evaluation.run.openai_backend.EndpointOptions", {"timeout": "timeout_s", "deadline": "deadline_s"}),
    ("eval", "evaluation.run.evaluate.EvaluationPlan", {"n": "samples"}),
    ("eval", "evaluation.investigation.asking.ToolOptions", {}),
    ("eval", "incidents.build.case.PromptOptions", PROMPTS | {"prompt_seed": "seed", "seed": None}),
    ("build-prefs", "incidents.build.case.PromptOptions", PROMPTS),
    ("build-prefs", "incidents.build.pairs.PairOptions", {}),
    ("build-prefs", "evaluation.on_policy.summary.OwnPairOptions", {}),
    ("build-prefs", "incidents.build.files.build_prefs", {}),
    ("build-sft", "incidents.build.files.build_sft", {}),
    ("build-rl", "incidents.build.files.build_rl", {}),
    ("investigate", "evaluation.investigation.asking.ToolOptions", {}),
    ("investigate", "investigation.prompts.AskOptions", {}),
    ("investigate", "evaluation.run.openai_backend.EndpointOptions", {"timeout": "timeout_s"}),
    ("triage", "incidents.build.case.PromptOptions", PROMPTS | {"trim": None}),  # as served, not as built
    ("triage", "evaluation.run.openai_backend.EndpointOptions", {"timeout": "timeout_s"}),
    ("compare", "evaluation.compare.command.Options", {"metrics": None}),
    ("before-after", "evaluation.run.before_after.before_after", {}),
    ("curves", "evaluation.training_curves.draw_curves", {}),
]


@pytest.fixture(scope="module")
def commands():
    (found,) = (one for one in make_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return found.choices


@pytest.mark.parametrize(
    ("command", "taker", "names"), TAKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_both_defaults_are_the_same(commands, command, taker, names):
    module, _, name = taker.rpartition(".")
    taken = inspect.signature(getattr(importlib.import_module(f"verl_aiops.{module}"), name)).parameters
    given = {names.get(one.dest, one.dest): one.default for one in commands[command]._actions}
    both = {name for name, value in given.items() if name in taken and value is not None}
    both -= {name for name in both if taken[name].default is inspect.Parameter.empty}
    assert both, "the two have no option in common any more"
    assert {name: given[name] for name in both} == {name: taken[name].default for name in both}
