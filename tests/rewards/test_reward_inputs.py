"""What the reward accepts as ground truth, turns and settings, how verl calls it, and collected incidents."""

import importlib.util
import json
import math
import re
import runpy
import subprocess
import sys
from collections import UserDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from verl_aiops.rewards.aiops_mturn import compute_score
from verl_aiops.rewards.triage.ground_truth import read_ground_truth

ROOT = Path(__file__).resolve().parents[2]
TRUTH = {"service": "adservice", "incident_type": "cpu_saturation"}
RIGHT = json.dumps(TRUTH)


def answer(service="adservice", incident_type="cpu_saturation"):
    return json.dumps({"service": service, "incident_type": incident_type})


# Ground truth.


@pytest.mark.parametrize(
    ("ground_truth", "expected"),
    [
        (None, "expected a mapping or its JSON text, got NoneType"),
        (7, "got int"),
        ("not json", "expected a mapping or its JSON text, got 'not json'"),
        ("[" * 50_000, "expected a mapping or its JSON text"),
        ("9" * 6000, "expected a mapping or its JSON text"),
        ('["adservice"]', "got list"),
        ({}, "service: expected a non-empty str, got nothing"),
        ({"service": "a"}, "incident_type: expected a non-empty str, got nothing"),
        ({"service": 5, "incident_type": "b"}, "service: expected a non-empty str, got 5"),
        ({"service": " \u3000", "incident_type": "b"}, "service: expected a non-empty str"),
        ({"service": "a" * 2000, "incident_type": "b"}, "service: expected at most 1024 characters, got 2000"),
        (TRUTH | {"evidence": "one line"}, "evidence: expected a list of str, got str"),
        (TRUTH | {"evidence": [1]}, "evidence: expected a list of str"),
        (TRUTH | {"candidates": ["a"]}, "candidates: expected"),
        (TRUTH | {"candidates": {"service": "adservice"}}, "candidates.service: expected a list of str"),
        (TRUTH | {"aliases": ["ad"]}, "aliases: expected"),
        (TRUTH | {"aliases": {"service": "ad"}}, "aliases.service: expected a list of str"),
        (TRUTH | {"aliases": {"service": ["ad"], "ad": "adservice"}}, "aliases: field names stand beside labels"),
        (TRUTH | {"aliases": {"service": {"adservice": {"ad": 1}}}}, "a table inside 'adservice'"),
        (TRUTH | {"aliases": {"service": {"adservice": [""]}}}, "aliases.service.adservice: expected a non-empty str"),
    ],
)
def test_a_broken_ground_truth_says_what_was_expected(ground_truth, expected):
    with pytest.raises(ValueError, match="^ground_truth: .*" + re.escape(expected)):
        compute_score("aiops_mturn", RIGHT, ground_truth)


@pytest.mark.parametrize(
    "aliases",
    [
        {"service": ["ad"]},
        {"service": {"adservice": ["ad"]}},
        {"service": {"ADSERVICE": ("ad", "advert"), "cartservice": ["basket"]}},
        {"service": {"ad": "adservice", "basket": "cartservice"}},
        {"adservice": ["ad"], "cpu_saturation": ["cpu"]},
        {"ad": "adservice", "cpu": "cpu_saturation"},
        {"service": {"adservice": ["ad"], "cartservice": None}, "incident_type": None},
        {"service": np.array(["ad"], dtype=object)},
        UserDict({"service": UserDict({"adservice": ["ad"]})}),
    ],
)
def test_aliases_in_every_documented_shape(aliases):
    truth = TRUTH | {"aliases": aliases}
    assert compute_score("", answer("Ad"), truth)["service_ok"] == 1
    assert compute_score("", answer("basket"), truth)["service_ok"] == 0
    assert compute_score("", answer("ad", "ad"), truth)["type_ok"] == 0


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"aliases": {"service": ["ad"]}, "candidates": {"service": ["adservice", "AD"]}}, "ad"),
        ({"aliases": {"service": ["ad"]}, "candidates": {"services": ["adservice", "ad"]}}, "ad"),
        ({"aliases": {"service": {"adservice": ["ad"], "ad": ["x"]}}}, "ad"),
        ({"aliases": {"service": {"adservice": ["ad"], "advert": ["ad"]}}}, "ad"),
    ],
)
def test_a_name_that_belongs_to_another_label_is_no_alias(extra, name):
    assert compute_score("", answer(name), TRUTH | extra)["service_ok"] == 0
    assert compute_score("", answer(), TRUTH | extra)["service_ok"] == 1


def test_a_mapping_is_read_anew_when_it_has_changed():
    truth = dict(TRUTH)
    assert compute_score("", RIGHT, truth)["acc"] == 1
    truth["service"] = "cartservice"
    assert compute_score("", RIGHT, truth)["acc"] == 0.5


def test_null_stands_for_absent_and_arrays_for_lists():
    nothing = TRUTH | {"evidence": None, "aliases": None, "candidates": None}
    assert read_ground_truth(nothing) == read_ground_truth(TRUTH) == read_ground_truth(UserDict(TRUTH))
    truth = TRUTH | {"evidence": np.array(["a line", " a line ", ""], dtype=object)}
    assert read_ground_truth(truth).evidence == ("a line",)


@pytest.mark.parametrize(
    ("extra_info", "expected"),
    [
        ([], "extra_info: expected a mapping, got list"),
        ({"turns": "one text"}, "turns.*expected the texts of the rounds in a list, got str"),
        ({"turns": 2}, "turns.*got int"),
        ({"turns": np.array("x")}, "turns.*got str"),
        ({"incident_text": ["a line"]}, "incident_text.*expected a str, got list"),
    ],
)
def test_faulty_extra_info_is_named(extra_info, expected):
    with pytest.raises(ValueError, match=expected):
        compute_score("aiops_mturn", RIGHT, TRUTH, extra_info)


def test_a_turn_that_is_no_text_is_an_empty_one():
    assert compute_score("", RIGHT, TRUTH, {"turns": [None, RIGHT]})["acc"] == 1
    assert compute_score("", RIGHT, TRUTH, {"turns": [RIGHT, None]})["score"] == 0


# Settings.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"service_weigth": 0.5}, "unknown setting 'service_weigth'.*'service_weight' .from 0.01 to 1.0"),
        ({"w_evidence": 0.1}, "unknown setting 'w_evidence'.*'evidence_weight' .from 0.0 to 1.0"),
        ({"weights": {"service": 1}}, "unknown setting 'weights'"),
        ({"beta": 0.1}, "unknown setting 'beta'"),
        ({"allow_fences": True}, "'allow_fence' .from False to True"),
        ({"service_weight": -0.1}, "service_weight: expected a number from 0.01 to 1.0, got -0.1"),
        ({"type_weight": 0}, "type_weight: expected a number from 0.01"),
        ({"format_weight": math.nan}, "format_weight: expected a number from 0.0 to 1.0, got nan"),
        ({"format_weight": True}, "format_weight: expected a number .*, got True"),
        ({"format_weight": "0.1"}, "format_weight: expected a number .*, got '0.1'"),
        ({"format_weight": [0.1]}, "format_weight: expected a number"),
        ({"format_weight": None}, "format_weight: expected a number"),
        ({"evidence_weight": math.inf}, "evidence_weight: expected a number"),
        ({"length_budget": 1.5}, "length_budget: expected an integer from 1 to 1000000, got 1.5"),
        ({"min_quote_chars": 1}, "min_quote_chars: expected an integer from 4 to 200, got 1"),
        ({"allow_fence": 1}, "allow_fence: expected true or false, got 1"),
        ({"evidence_weight": 0.2}, "= 0.4 must stay below the smaller of service_weight and type_weight .0.4"),
        ({"type_weight": 0.2}, "or an answer could earn more by its form than by one right field"),
    ],
)
def test_a_wrong_setting_is_named_with_its_range(settings, expected):
    with pytest.raises(ValueError, match="^reward_kwargs: .*" + expected):
        compute_score("aiops_mturn", RIGHT, TRUTH, **settings)


def test_a_value_checked_once_does_not_pass_in_another_type():
    compute_score("", RIGHT, TRUTH, service_weight=1, allow_fence=True)
    with pytest.raises(ValueError, match="service_weight"):
        compute_score("", RIGHT, TRUTH, service_weight=True)
    with pytest.raises(ValueError, match="allow_fence"):
        compute_score("", RIGHT, TRUTH, allow_fence=1)


def test_what_verl_passes_by_itself_is_ignored():
    plain = compute_score("aiops_mturn", RIGHT, TRUTH)
    passed = {"reward_router_address": "10.0.0.1:8000", "reward_model_tokenizer": object(), "memory_limit_mb": 1024}
    assert compute_score("aiops_mturn", RIGHT, TRUTH, **passed) == plain
    assert compute_score("aiops_mturn", RIGHT, TRUTH, sandbox_fusion_url=None, some_new_handle=object()) == plain
    assert compute_score("aiops_mturn", RIGHT, TRUTH, service_weight=0.8, **passed)["score"] != plain["score"]


def test_weights_are_relative():
    weights = {"service_weight": 0.8, "type_weight": 0.8, "format_weight": 0.1, "evidence_weight": 0.3}
    assert compute_score("", RIGHT, TRUTH, **weights) == compute_score("", RIGHT, TRUTH)
    only_fields = dict.fromkeys(("format_weight", "evidence_weight", "early_verdict_weight", "invented_weight"), 0)
    assert compute_score("", RIGHT, TRUTH, **only_fields)["score"] == 1.0
    assert compute_score("", answer("x"), TRUTH, **only_fields)["score"] == 0.5


# verl.


@pytest.mark.parametrize(
    "path", [f"{ROOT}/examples/reward_score/aiops_mturn.py", "pkg://verl_aiops.rewards.aiops_mturn"]
)
def test_verl_loads_the_function_by_path_and_calls_it_as_its_manager_does(path):
    # Only this file of verl: importing the package takes seconds.
    folder = importlib.util.find_spec("verl").submodule_search_locations[0]
    load = runpy.run_path(f"{folder}/utils/import_utils.py")["load_extern_object"]
    function = partial(load(path, "compute_score"), service_weight=0.5, type_weight=0.5)
    extra_info = {"turns": np.array(["Hm.", RIGHT], dtype=object), "num_turns": 4, "rollout_reward_scores": {}}
    result = function(data_source="aiops_mturn", solution_str="", ground_truth=RIGHT, extra_info=extra_info)
    assert result["score"] == pytest.approx(1.05 / 1.2)


def test_the_reward_needs_neither_torch_nor_verl():
    code = "import sys, verl_aiops.rewards.aiops_mturn; print({'torch', 'verl', 'numpy'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "set()"


def test_the_benchmark_measures_what_it_says():
    bench = runpy.run_path(f"{ROOT}/benchmarks/bench_reward.py")
    calls = bench["build_calls"](1, text_truth=False, chinese=True)
    results = [compute_score(*call) for call in calls]
    assert {result["acc"] for result in results} >= {0.0, 0.5, 1.0}
    assert all(result["quotes"] == 3 or result["quotes"] == 2 for result in results)
    assert not any(result["invented"] or result["early_verdict"] for result in results)
    assert bench["measure"](calls, chunk=len(calls))[0] > 0


# Collected incidents.


def test_collected_incidents_pay_the_right_lines_most(collected):
    judged = 0
    for incident in map(json.loads, collected.path.read_text(encoding="utf-8").splitlines()):
        text = "\n".join([incident["symptom"], *incident["logs"], incident["trace"] or ""])
        right = answer(incident["service"], incident["incident_type"])

        def score(*lines, truth=incident, text=text, right=right, marks='""'):
            early = "I looked at the data.\n" + "\n".join(f"- {marks[0]}{line.strip()}{marks[1]}" for line in lines)
            extra = {"turns": [early, right], "incident_text": text}
            return compute_score(truth["source"], "", truth, extra, length_budget=100_000)

        bare, everything = score(), score(*text.splitlines())
        assert bare["score"] == pytest.approx(0.85) and everything["acc_main"] == 1, incident["id"]
        if not incident["evidence"]:
            continue
        judged += 1
        best = score(*incident["evidence"])
        assert best["score"] == pytest.approx(1.0), incident["id"]
        assert (best["invented"], best["early_verdict"]) == (0, 0), incident["id"]
        assert score(*incident["evidence"], marks="「」")["score"] == pytest.approx(1.0), incident["id"]
        assert everything["evidence"] < best["evidence"] or everything["evidence_precision"] == 1, incident["id"]
        altered = [line[:-1] + ("0" if line[-1] != "0" else "1") for line in map(str.strip, incident["evidence"])]
        # What a line itself has in quotation marks stays verbatim within the altered line.
        limit = best if any('"' in line for line in altered) else bare
        assert score(*altered)["score"] < limit["score"], incident["id"]
    assert judged == collected.count - collected.without_evidence
