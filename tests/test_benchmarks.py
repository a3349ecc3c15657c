"""How the benchmarks read a speed from what they measured."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


def test_a_speed_is_the_time_of_all_steps_after_the_first_over_their_number(benchmark):
    """A step that seemed to take no time stands beside one that took two steps' time."""
    assert benchmark("dpo_runs").step_seconds([11.0, 12.0, 0.0, 4.5, 5.5]) == 5.5


def test_a_point_of_the_scaling_is_its_mean_and_nothing_where_it_did_not_fit(benchmark):
    module = benchmark("bench_scaling")
    assert module.mean([8.0, 0.0, 1.0]) == 3.0
    assert math.isnan(module.mean([]))


@pytest.mark.parametrize("steps", ["1", "8"])
def test_fewer_than_eight_timed_steps_are_refused(benchmark, steps, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_dpo.py", "--model", "MODEL", "--steps", steps])
    with pytest.raises(SystemExit) as end:
        benchmark("bench_dpo").main()
    assert end.value.code == 2 and "9 at least" in capsys.readouterr().err


def test_every_variant_has_a_flop_law(benchmark, tiny_model_dir):
    flops = benchmark("bench_dpo").needed_flops(str(tiny_model_dir), 300, 30)
    assert set(flops) == set(benchmark("dpo_runs").VARIANTS)
    assert flops["ours"] < flops["rows"] < flops["TRL, cached reference"] < flops["TRL"]


def test_flops_of_four_answers_are_those_of_one_prompt_against_twelve_rows(benchmark, tiny_model_dir):
    """N (P + 4 a) + H 4 a against (N + H) 12 (P + a): each length's share is linear, and the head's is TRL's alone."""
    law = benchmark("bench_dpo").needed_flops

    def flops(prompt, answer, name):
        return law(str(tiny_model_dir), prompt, answer, 4)[name]

    trunk = flops(1, 0, "ours")  # 6 N
    trunk_and_head = flops(0, 1, "ours") / 4  # 6 (N + H)
    assert 0 < trunk < trunk_and_head
    assert flops(300, 30, "ours") == 300 * trunk + 4 * 30 * trunk_and_head
    assert flops(300, 30, "rows") == 4 * 300 * trunk + 4 * 30 * trunk_and_head
    for name in ("TRL, cached reference", "TRL, cached reference, Liger"):
        assert flops(300, 30, name) == 12 * 330 * trunk_and_head
    assert flops(300, 30, "TRL") == flops(300, 30, "TRL, cached reference") * 8 / 6


@pytest.mark.parametrize(("completions", "pairs"), [(2, 1), (4, 6)])
def test_trl_gets_the_pairs_that_ours_makes_of_the_groups(benchmark, tiny_model_dir, tmp_path, completions, pairs):
    """The same examples in the same order, a prompt's one after another."""
    from transformers import AutoTokenizer

    from verl_aiops.data import PreferenceDataset

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    files = benchmark("dpo_runs").make_data(
        tmp_path, tokenizer, prompts=3, prompt=60, answer=20, completions=completions
    )
    of_pairs, of_groups = (
        PreferenceDataset(str(path), tokenizer, max_prompt_length=None, max_response_length=None, comparisons="all")
        for path in files
    )
    assert len(of_pairs) == len(of_groups) == 3 * pairs
    for at in range(3 * pairs):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert of_pairs[at][name].tolist() == of_groups[at][name].tolist()
        assert of_groups[at]["prompt_number"] == at // pairs
    assert len(files[1].read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("completions", "micro_batch", "of_trl", "sizes"),
    [(2, None, None, (5, 5, 5)), (4, None, None, (30, 30, 30)), (4, 1, None, (30, 6, 6)), (4, None, 3, (30, 30, 3))],
)
def test_all_variants_take_the_same_prompts_a_step(
    benchmark, monkeypatch, tmp_path, completions, micro_batch, of_trl, sizes
):
    module = benchmark("dpo_runs")
    asked = []

    def started(command, *, cwd, env=None, **_):
        asked.append(command)
        if env is None:
            (cwd / "result.json").write_text("{}")
            return
        told = {name: 1.0 for name in ("actor/loss", "timing_s/step", "perf/total_num_tokens")}
        told |= {"perf/shared_tokens_ratio": 0.1, "perf/max_memory_allocated_gb": 1.0}
        Path(env["VERL_FILE_LOGGER_PATH"]).write_text(json.dumps({"data": told}) + "\n")

    monkeypatch.setattr(module.subprocess, "run", started)
    arguments = SimpleNamespace(
        batch=5, micro_batch=micro_batch, completions=completions, pairs="PAIRS", groups="GROUPS", steps=9,
        device="cpu", model="MODEL", max_length=64, overrides=[], verbose=False, trl_attention="sdpa",
        trl_micro_batch=of_trl,
    )  # fmt: skip
    for variant in ("ours", "TRL, cached reference"):
        module.run(variant, arguments, tmp_path / variant)
    ours, trl = asked
    batch, micro, of_trl = sizes
    assert {
        "data.train_files=GROUPS",
        f"data.train_batch_size={batch}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
        "algorithm.dpo.comparisons=all",
    } <= set(ours)
    request = json.loads(trl[-1])
    assert (request["pairs"], request["batch"], request["micro_batch"]) == ("PAIRS", batch, of_trl)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--completions", "1"], "2 at least, and 2 with --pairs"),
        (["--completions", "4", "--pairs", "FILE"], "2 at least, and 2 with --pairs"),
        (["--completions", "4", "--batch", "1", "--trl-micro-batch", "4"], "does not divide the pairs of a step"),
    ],
)
def test_sizes_that_cannot_be_are_refused(benchmark, monkeypatch, capsys, given, message):
    monkeypatch.setattr(sys, "argv", ["bench_dpo.py", "--model", "MODEL", *given])
    with pytest.raises(SystemExit) as end:
        benchmark("bench_dpo").main()
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "most", "sizes"), [(2, None, (5, 5)), (4, None, (30, 30)), (4, 8, (30, 6)), (8, 8, (140, 7))]
)
def test_reward_models_take_the_same_prompts_a_step(benchmark, monkeypatch, tmp_path, answers, most, sizes):
    module = benchmark("bench_rm")
    asked = []
    monkeypatch.setattr(module, "by_main_ppo", lambda section, settings, *_: asked.append((section, settings)))
    arguments = SimpleNamespace(
        batch=5, answers=answers, groups="GROUPS", prompt=100, answer=20, classifier="MODEL", trl_pairs=most
    )
    module.ours("rows", arguments, tmp_path)
    ((section, settings),) = asked
    batch, a_pass = sizes
    assert section == "rm" and {
        "data.train_files=GROUPS",
        f"data.train_batch_size={batch}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={batch}",
        "algorithm.rm.logprob_backend=rows",
    } <= set(settings)
    assert module.a_pass(batch, most) == a_pass and batch % a_pass == 0


@pytest.mark.parametrize(
    ("given", "message"), [(["--completions", "2", "1"], "2 at least"), (["--steps", "8"], "9 at least")]
)
def test_speeds_of_reward_models_that_say_nothing_are_refused(benchmark, monkeypatch, capsys, given, message):
    monkeypatch.setattr(sys, "argv", ["bench_rm.py", "--model", "MODEL", *given])
    with pytest.raises(SystemExit) as end:
        benchmark("bench_rm").main()
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.fixture
def rl(benchmark):
    """bench_rl with its neighbours."""
    for name in ("rl_plots", "rl_worker"):
        benchmark(name)
    return benchmark("bench_rl")


@pytest.mark.parametrize("text", ["", "rows", "rows=x", "rows=8,tokens=9", "rows=8,fused=cuda", "rows=8,packd"])
def test_a_setting_that_is_none_is_refused(rl, text):
    with pytest.raises(ValueError, match="rows=NUMBER|fused=torch"):
        rl.parse_setting(text)


def test_a_setting_says_how_a_worker_is_built_and_what_bounds_its_micro_batches(rl):
    build, limits = rl.parse_setting("tokens=16384,packed,fused=triton")
    assert build == {"checkpointing": False, "packed": True, "fused": "triton"}
    assert limits == {"use_dynamic_bsz": True, "max_token_len_per_gpu": 16384}
    build, limits = rl.parse_setting("rows=8,checkpointing")
    assert build == {"checkpointing": True, "packed": False, "fused": None}
    assert limits == {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 8}


POINT = {"prompts": 2, "n": 4, "prompt": 100, "answer": 20, "vocabulary": 50, "seed": 0}
# hand-made: body 10 and head 5 parameters, 3 layers, width 2
SHAPE = {"body": 10, "head": 5, "layers": 3, "width": 2}


def test_flops_are_those_of_a_prompt_computed_once_and_of_logits_at_answers(rl):
    found = rl.flops(POINT, SHAPE)
    verl = 2 * (10 * 8 * 120 + 5 * 8 * 120) + 4 * 3 * 2 * 8 * 120 * 120 / 2
    ours = 2 * (10 * (2 * 100 + 8 * 20) + 5 * 8 * 20) + 24 * (2 * 100 * 100 / 2 + 8 * (20 * 100 + 20 * 20 / 2))
    assert found == {"verl": 5 * verl, "ours": 5 * ours, "ours, as trained": 4 * ours}


def measured(*seconds, peak=None):
    parts = dict(zip(("old_log_prob", "ref", "update_actor")[-len(seconds) :], map(list, seconds)))
    return {"seconds": parts, "peak_gib": peak, "tokens_ratio": 1.0}


def test_a_run_that_goes_on_keeps_what_it_has_and_refuses_another_machines(rl, tmp_path):
    about = {"machine": "a", "versions": {}, "model": "m"}
    key = {"point_name": "base", "run": "ours", "setting": "rows=8", "turn": 0, "point": POINT}
    rl.Record(tmp_path / "x.json", about).add("runs", key, measured([1.0], [2.0], [3.0]))
    again = rl.Record(tmp_path / "x.json", about)
    assert again.has("runs", key) and again.find("runs", key)["seconds"]["ref"] == [2.0]
    assert not again.has("runs", {**key, "turn": 1}) and not again.has("runs", {**key, "point": {**POINT, "n": 8}})
    with pytest.raises(SystemExit, match="machine"):
        rl.Record(tmp_path / "x.json", {**about, "machine": "b"})


def test_ratios_are_of_whole_steps_and_a_setting_that_did_not_fit_counts_nowhere(rl):
    runs = [("verl", "rows=32", None), ("verl", "rows=8", measured([2.0, 4.0], [3.0, 3.0], [6.0, 6.0], peak=9.0))]
    runs += [
        ("ours", "tokens=9", measured([0.5], [0.5], [1.0])),
        ("ours, as trained", "tokens=9", measured([0.5], [1])),
    ]
    record = {
        "runs": [
            {"point_name": "base", "run": run, "setting": setting, "turn": 0, "point": POINT, "measured": found}
            for run, setting, found in runs
        ]
    }
    found = rl.summarise(record, SHAPE)["base"]["runs"]
    assert found["verl"]["together"] == 12.0 and found["verl"]["setting"] == "rows=8"
    assert (found["verl"]["timed_steps"], found["verl"]["peak_gib"]) == (2, 9.0)
    assert (found["ours"]["ratio"], found["ours, as trained"]["ratio"]) == (6.0, 8.0)


def test_whole_steps_leave_each_runs_first_out_and_count_a_missing_part_as_nothing(benchmark):
    benchmark("rl_plots")
    module = benchmark("bench_rl_steps")

    def step(whole, old, update):
        return {"timing_s/step": whole, "timing_s/gen": 1.0, "timing_s/update_actor": update, **old}

    old = {"timing_s/old_log_prob": 2.0}
    runs = [
        {"engine": "verl", "steps": [step(99.0, old, 50.0), step(10.0, old, 6.0), step(12.0, old, 6.0)]},
        {"engine": "ours", "steps": [step(99.0, {}, 50.0), step(2.0, {}, 1.0), step(3.5, {}, 1.0)]},
    ]
    found = module.summarise(runs)
    assert (found["verl"]["step"], found["ours"]["step"], found["ours"]["ratio_step"]) == (11.0, 2.75, 4.0)
    assert found["ours"]["ratio_passes"] == 8.0 and found["ours"]["seconds"]["old_log_prob"] == 0.0
    assert found["verl"]["seconds"]["other"] == 2.0


def test_the_work_of_a_long_context_is_that_of_short_ones_and_attention(benchmark, tmp_path):
    """Beside the law of bench_dpo: of frozen weights no gradient, and what each token sees before it."""
    module, law = benchmark("bench_long"), benchmark("bench_dpo").needed_flops
    case = module.Case("1.5b", prompt=300, pairs=3, settings={}, answer=30)
    config = module.shape_of(case, tiny=True)
    seen = sum(at + 0.5 for at in range(300)) + 2 * sum(300 + at + 0.5 for at in range(30))
    attention = 12 * seen * config.hidden_size * config.num_hidden_layers
    folder = module.model_folder(tmp_path, config)
    trunk = law(str(folder), 300, 30)["ours"]
    assert module.needed_flops(case, tiny=True) == pytest.approx(3 * (trunk + attention))
    lora = module.Case("1.5b", prompt=300, pairs=3, settings={"lora_rank": 8}, answer=30)
    assert module.needed_flops(lora, tiny=True) == pytest.approx(3 * (trunk * 4 / 6 + attention))


def test_a_case_that_does_not_fit_has_its_row(benchmark):
    module = benchmark("bench_long")
    case = module.asdict(module.CASES["LoRA"])
    rows = {"fits": {"case": case, "s_per_step": 2.0, "seconds": [2.0], "peak_gib": 36.04, "mfu": 0.5}}
    rows["does not"] = {"case": case, "fault": "does not fit"}
    *_, first, second = module.table({"rows": rows}).splitlines()
    assert first == "| fits | 7b | 1 x 32,768 + 2 x 256 | 2.000 | 36.0 | 50.0% |"
    assert second == "| does not | 7b | 1 x 32,768 + 2 x 256 | does not fit | | |"
