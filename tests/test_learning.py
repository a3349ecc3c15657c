"""benchmarks/learning.py: recipes, the rows of its files, jobs that are not done twice, the table of kept answers."""

import gzip
import json
import random
import sys
from collections import Counter

import pytest
import yaml
from benchmark_folder import FOLDER
from prepared import composed

from verl_aiops.cli.main import main

# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "recipes").glob("*.yaml")))
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_recipe_is_complete_and_its_commands_are_verls(benchmark, name, device, tmp_path):
    """Every setting of a training command is one that Hydra finds in verl's configuration and our presets."""
    recipe = benchmark("learning_recipe").read_recipe(name)
    stages = benchmark("learning_stages")
    for stage in recipe["stages"].values():
        if stage["kind"] in ("answers", "reference"):
            continue
        paths = {"model": tmp_path / "model", "data": tmp_path / "rows.parquet", "out": tmp_path / "out"}
        command = stages.train_command(stage, recipe, **paths, seed=3, device=device)
        config = composed(*command[3:])
        assert config.data.seed == 3
        assert config.actor_rollout_ref.actor.optim.lr == stage["lr"]


def test_a_recipe_is_changed_by_keys_and_what_is_unknown_is_refused(benchmark):
    read = benchmark("learning_recipe").read_recipe
    changed = read("groups", ["stages.sft.epochs=1", "seeds=[4]", "stages.pairs=null", "data.build.max-chars=300"])
    assert changed["stages"]["sft"]["epochs"] == 1 and changed["seeds"] == [4]
    assert "pairs" not in changed["stages"] and changed["data"]["build"]["max-chars"] == 300
    for change, said in (
        ("stages.sft.epoch=1", "'epoch' is no setting"),
        ("stages.sft.kind=rloo", "expected one of sft, answers"),
        ("stages.sft.from=pairs", "expected a stage above it"),
        ("stages.pairs.answers=null", "answers has to be given"),
        ("stages.sft", "expected KEY.KEY=VALUE"),
    ):
        with pytest.raises(SystemExit, match=said):
            read("groups", [change])
    with pytest.raises(SystemExit, match="there are .*groups"):
        read("nothing")


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(benchmark, tmp_path):
    """The files of the tiny recipe on three sides, and its settings."""
    recipe = benchmark("learning_recipe").read_recipe(
        "tiny",
        [
            "data.simulate={num-incidents: 60, seed: 1, difficulty: mix}",
            "data.build={max-chars: 300, val-share: 0.2, test-share: 0.2, hold-out-source: [simulator/bank]}",
            "data.folds=2",
            "sides=[test, unseen]",
        ],
    )
    benchmark("learning_data").build_data(
        recipe, [], tmp_path / "data", lambda *arguments: main(list(map(str, arguments)))
    )
    return tmp_path / "data", recipe


def rows_of(path):
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def groups_of(rows):
    return {row["extra_info"]["group"] for row in rows}


def test_models_are_asked_about_a_fold_that_sft_has_not_seen(built):
    data, recipe = built
    train, ask, side = (rows_of(data / f"{name}.parquet") for name in ("train", "ask", "side"))
    assert not groups_of(train) & groups_of(ask) and not (groups_of(train) | groups_of(ask)) & groups_of(side)
    assert {row["extra_info"]["part"] for row in side} == {"simulated", "unseen"}
    assert groups_of(side) == groups_of(rows_of(data / "rl.test.parquet")) | groups_of(
        rows_of(data / "rl.unseen.parquet")
    )
    shards = [rows_of(data / f"own{shard}.parquet") for shard in range(2)]
    assert groups_of(shards[0]) | groups_of(shards[1]) == groups_of(ask) and len(shards[0]) + len(shards[1]) == len(ask)
    conversations = [json.loads(line) for line in (data / "sft-train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in conversations] == [row["extra_info"]["id"] for row in train]
    for row, own in zip(train, conversations):
        truth = json.loads(row["reward_model"]["ground_truth"])
        said = json.loads(own["chosen"][-1]["content"])
        assert said == {key: truth[key] for key in ("service", "incident_type")}
        assert [message["content"] for message in own["chosen"][1::2]] == row["extra_info"]["rounds"]
        assert own["rejected"][:-1] == own["chosen"][:-1] and own["rejected"] != own["chosen"]


def test_a_verdict_can_be_asked_for_after_the_reference_analysis(built, benchmark):
    data, _ = built
    for row, own in zip(rows_of(data / "side.parquet"), rows_of(data / "reference.parquet"), strict=True):
        asked = [message["role"] for message in own["prompt"]]
        assert asked == ["user", "assistant", "user"] and own["prompt"][:1] == row["prompt"]
        assert own["prompt"][1]["content"] == row["extra_info"]["answers"][0]
        assert [own["prompt"][2]["content"]] == row["extra_info"]["rounds"] and not own["extra_info"]["rounds"]
        assert own["extra_info"]["answers"] == row["extra_info"]["answers"][1:]


def test_near_misses_are_about_what_is_asked(built, benchmark, tmp_path):
    data, recipe = built
    stages = benchmark("learning_stages")
    stage = {"form": "near_misses", "pairs-per-incident": 1}
    assert main(stages.pairs_arguments(stage, recipe, [], data, tmp_path / "pairs.parquet")) == 0
    before = groups_of_pairs(tmp_path / "pairs.parquet")
    files = [data / f"own{shard}.parquet" for shard in range(2)]
    stages.keep_asked(tmp_path / "pairs.parquet", files)
    asked = groups_of(rows_of(data / "ask.parquet"))
    assert groups_of_pairs(tmp_path / "pairs.parquet") == before & asked and before - asked
    own = stages.pairs_arguments({**stage, "form": "near_misses_own"}, recipe, [tmp_path / "a"], data, tmp_path / "p")
    assert own[own.index("--analyses") + 1] == str(tmp_path / "a")


def groups_of_pairs(path):
    return {row["group"] for row in rows_of(path)}


def test_an_unknown_culprit_is_a_pair_too(benchmark):
    """The rejected answer of SFT's pairs is none that an incident can have."""
    answers = ["It cannot be told.", '{"service": "unknown", "incident_type": "unknown"}']
    row = {"prompt": [], "extra_info": {"answers": answers, "rounds": ["Verdict:"], "id": "i", "group": "g"}}
    made = benchmark("learning_data").conversation(row)
    assert made["chosen"][-1]["content"] == answers[-1] != made["rejected"][-1]["content"]


def test_other_views_show_what_is_trained_on_and_nothing_else(benchmark, tmp_path):
    """Two simulations in one set, and the same incidents at other lengths: of those of `rows` alone."""
    recipe = benchmark("learning_recipe").read_recipe(
        "tiny",
        [
            "data.simulate=[{num-incidents: 30, seed: 1, difficulty: easy}, {num-incidents: 30, seed: 2}]",
            "data.build={max-chars: 400, val-share: 0.3}",
            "data.views=[{max-chars: 150}, {trim: blind}]",
            "data.folds=2",
            "data.rename=1",
            "data.shuffle=0",
            "data.asked={prompts: {max-chars: 250}, rename: 1, simulate: {num-incidents: 7, seed: 9}}",
            "stages.more={kind: sft, from: sft, prompts: asked, lr: 1.0e-3}",
            "stages.new={kind: answers, of: sft, prompts: asked, limit: 5}",
        ],
    )
    benchmark("learning_data").build_data(
        recipe, [], tmp_path / "data", lambda *arguments: main(list(map(str, arguments)))
    )
    train, ask = (rows_of(tmp_path / "data" / f"{name}.parquet") for name in ("train", "ask"))
    ids = [row["extra_info"]["id"] for row in train]
    plain = {one for one in ids if "#" not in one}
    assert {one.split("-")[2] for one in plain} == {"s1", "s2"}  # both simulations
    copies = [one for one in ids if one.endswith("#renamed1")]
    assert len(ids) == len(set(ids)) == 3 * len(plain) + len(copies) and copies
    for number in (1, 2):
        assert {one.removesuffix(f"#view{number}") for one in ids if one.endswith(f"#view{number}")} == plain
    assert not groups_of(train) & groups_of(ask)
    # what is asked while training: shorter prompts of the fold that SFT has not seen, copies of that under names that
    # no copy of SFT's has, and new incidents
    new = {row["extra_info"]["id"] for row in rows_of(tmp_path / "data" / "asked.parquet")}
    kinds = Counter(row["extra_info"]["id"].partition("#")[2] for row in ask if row["extra_info"]["id"] not in new)
    assert set(kinds) == {"", "renamed2"} and 0 < kinds["renamed2"] <= kinds[""]
    assert len(new) == 7 and len(ask) == 7 + kinds.total()
    assert [row["extra_info"]["index"] for row in ask] == list(range(len(ask)))
    # what was simulated for this alone can be had by itself: for SFT, for sampled answers and near misses
    known = rows_of(tmp_path / "data" / "known.parquet")
    assert {row["extra_info"]["id"] for row in known} == new | {
        row["extra_info"]["id"] for row in rows_of(tmp_path / "data" / "rl.parquet")
    }
    more = (tmp_path / "data" / "sft-asked.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["id"] for line in more} == new
    sampled = {row["extra_info"]["id"] for row in rows_of(tmp_path / "data" / "new0.parquet")}
    assert len(sampled) == 5 and sampled < new
    for form in ("near_misses", "near_misses_own"):
        stage = {"form": form, "pairs-per-incident": 1}
        made = benchmark("learning_stages").pairs_arguments(stage, recipe, [], tmp_path / "data", tmp_path / "pairs")
        assert made[made.index("--incidents") + 1] == str(tmp_path / "data" / "asked.jsonl")
        assert made[made.index("--val-share") + 1] == "0"
    real = {**recipe["data"], "asked": {"parts": ["real"], "simulate": None}}
    some = [{"extra_info": {"part": part, "id": f"i-{part}"}} for part in ("real", "simulated", "real")]
    assert benchmark("learning_data").asked_rows(real, some, tmp_path / "data") == some[::2]
    lengths = {row["extra_info"]["id"]: len(row["extra_info"]["incident_text"]) for row in train}
    assert sum(lengths[f"{one}#view1"] < lengths[one] for one in plain) > len(plain) / 2


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again_until_its_settings_change(benchmark, tmp_path):
    jobs = benchmark("learning_jobs")
    ran = []

    def plan(rate, fails=()):
        def job(name, settings, *needs):
            def do(folder, run):
                ran.append(name)
                run([sys.executable, "-c", f"import sys; sys.exit({int(name in fails)})"])

            return jobs.Job(name, do, settings, needs, on_device=name != "data")

        return [job("data", {}), job("sft", {"lr": rate}, "data"), job("eval", {}, "sft"), job("other", {}, "data")]

    def run(*given, **options):
        ran.clear()
        runner = jobs.Runner(tmp_path, [None], **options)
        runner.run(plan(*given))
        return runner

    failed = run(1.0, ("sft",)).failed
    assert sorted(ran) == ["data", "other", "sft"]
    assert failed["sft"].startswith("RuntimeError: exit code 1") and failed["eval"] == "needs sft"
    runner = run(1.0)
    assert ran == ["sft", "eval"] and not runner.failed and set(runner.seconds) == {"data", "sft", "eval", "other"}
    run(1.0)
    assert ran == []
    run(2.0)
    assert ran == ["sft", "eval"]
    late = run(3.0, minutes=0)
    assert ran == [] and late.failed == {"sft": "no time left", "eval": "no time left"}


def test_jobs_on_a_device_have_it_alone_and_are_told_which(benchmark, tmp_path):
    jobs = benchmark("learning_jobs")
    shown = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(0.3)"

    def do(folder, run):
        run([sys.executable, "-c", shown])

    runner = jobs.Runner(tmp_path, [4, 7])
    runner.run([jobs.Job(f"job{number}", do, on_device=True) for number in range(4)])
    seen = [(tmp_path / f"job{number}" / "log.txt").read_text().split()[-1] for number in range(4)]
    assert sorted(seen) == ["4", "4", "7", "7"]


# --- table ------------------------------------------------------------------------------------------------------------


def line(number, right, part="real"):
    truth = {"service": "a", "incident_type": "b", "evidence": []}
    from verl_aiops.rewards.aiops_mturn import compute_score

    answer = json.dumps({"service": "a" if right else "c", "incident_type": "b"})
    return {
        **{"id": f"i{number}", "group": f"f{number}", "source": "shop", "lang": "en", "difficulty": None},
        **{"part": part, "answerable": "read", "sample": 0, "seed": 0, "rounds": ["", answer], "cut": [False, False]},
        **{"tokens": [3, 9], "ground_truth": truth, "predicted": json.loads(answer), "error": None},
        "score": compute_score("", answer, truth),
    }


def kept(benchmark, folder, label, seed, shares, count=40):
    """A run whose share of right answers differs by part."""
    rng = random.Random(f"{label}/{seed}")
    lines = [line(n, rng.random() < shares[n % 2], ("real", "simulated")[n % 2]) for n in range(count)]
    file = folder / "generations.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    benchmark("learning_table").keep_answers(file, folder / "answers" / label / f"s{seed}.jsonl.gz")
    return lines


def test_a_table_is_made_of_kept_answers_alone_parts_apart(benchmark, tmp_path):
    table = benchmark("learning_table")
    lines = {("sft", seed): kept(benchmark, tmp_path, "sft", seed, (0.4, 0.6)) for seed in range(2)}
    lines |= {("dpo", seed): kept(benchmark, tmp_path, "dpo", seed, (0.9, 0.6)) for seed in range(2)}
    lines["linear", 0] = kept(benchmark, tmp_path, "linear", 0, (0.7, 1.0))
    files = {"sft": ["s0.jsonl.gz", "s1.jsonl.gz"], "dpo": ["s0.jsonl.gz", "s1.jsonl.gz"], "linear": ["s0.jsonl.gz"]}
    made = table.table_of(tmp_path / "answers", "sft", files)
    assert list(made) == ["all", "real", "simulated"] and list(made["all"]["labels"]) == ["sft", "dpo", "linear"]
    for part in made:
        for label, seeds in files.items():
            runs = [[one for one in lines[label, seed] if part in ("all", one["part"])] for seed in range(len(seeds))]
            shares = [sum(one["score"]["acc_main"] for one in own) / len(own) for own in runs]
            found = made[part]["labels"][label]["acc_main"]
            assert found["runs"] == pytest.approx(shares) and found["value"] == pytest.approx(sum(shares) / len(shares))
            assert found["low"] < found["value"] <= found["high"]
    assert made["real"]["labels"]["dpo"]["acc_main"]["difference"]["value"] > 0.2
    result = {"table": made, "baselines": ["linear"]}
    text = table.write_table(result, tmp_path / "table.md")
    assert text.splitlines()[0] == "| both fields right | all (40) | real (20) | simulated (20) |"
    pytest.importorskip("matplotlib")
    table.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="expected answers of grpo"):
        table.table_of(tmp_path / "answers", "grpo", files)


def test_kept_answers_are_the_same_bytes_and_read_as_an_evaluation(benchmark, tmp_path):
    from verl_aiops.evaluation.run.results import read_lines

    kept(benchmark, tmp_path, "sft", 0, (0.5, 0.5))
    first = (tmp_path / "answers" / "sft" / "s0.jsonl.gz").read_bytes()
    assert first[4:8] == bytes(4)  # no time of writing
    lines = kept(benchmark, tmp_path, "sft", 0, (0.5, 0.5))
    assert (tmp_path / "answers" / "sft" / "s0.jsonl.gz").read_bytes() == first
    (tmp_path / "plain.jsonl").write_bytes(gzip.decompress(first))
    assert read_lines(tmp_path / "plain.jsonl") == [{**one, "tokens": None} for one in lines]


@pytest.mark.slow
@pytest.mark.e2e
def test_the_tiny_recipe_goes_through_every_kind_of_stage(tmp_path, tiny_model_dir, monkeypatch):
    import subprocess

    command = [sys.executable, str(FOLDER / "learning.py"), "--recipe", "tiny", "--model", str(tiny_model_dir)]
    command += ["--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    made = json.loads((tmp_path / "out" / "learning.json").read_text())
    stages = [
        name
        for name, stage in yaml.safe_load((FOLDER / "recipes" / "tiny.yaml").read_text())["stages"].items()
        if stage["kind"] != "answers"
    ]
    assert [name for name in made["table"]["all"]["labels"] if name not in made["baselines"]] == stages
    again = subprocess.run([*command, "--table-only"], capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and json.loads((tmp_path / "out" / "learning.json").read_text()) == made
