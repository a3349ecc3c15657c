"""benchmarks/learning_rm.py: jobs and commands, what is made of their folders, the lessons of its judge, servers."""

import argparse
import asyncio
import gzip
import json
import sys
import threading
import warnings
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_folder import FOLDER

from verl_aiops.cli.main import make_parser
from verl_aiops.rewards.model.judge_prompts import verdict_of


@pytest.fixture
def learning_rm(benchmark):
    """The script, with fresh neighbours."""
    for name in ("learning_jobs", "learning_recipe", "learning_judge", "learning_servers", "learning_stages"):
        benchmark(name)
    benchmark("learning")
    benchmark("learning_rm_result")
    return benchmark("learning_rm")


@pytest.fixture
def plan(learning_rm, tmp_path):
    """plan(**changes): the jobs by name."""

    def make(**changes):
        given = {"incidents": None, "model": tmp_path / "model", "work": tmp_path / "work", "size": "tiny"}
        given |= {"device": "cpu", "seeds": 2, "out": tmp_path / "out", "only": None, **changes}
        return {job.name: job for job in learning_rm.Plan(argparse.Namespace(**given)).jobs()}

    return make


# --- jobs and commands ------------------------------------------------------------------------------------------------


def test_each_kind_of_model_has_its_seeds_and_online_runs_wait_for_those_that_rank(plan):
    jobs = plan()
    assert {name for name in jobs if "-s" in name} == {f"{k}-s{s}" for k in ("pairs", "groups", "trl") for s in (0, 1)}
    needs = {name: set(job.needs) - {"data", "policy"} for name, job in jobs.items() if name.startswith("online-")}
    assert needs == {
        "online-rule": set(),
        "online-rm": {"pairs-s0"},
        "online-ensemble": {"pairs-s0", "pairs-s1"},
        "online-judge": {"judge"},
    }
    order = list(jobs)
    for job in jobs.values():
        assert all(order.index(name) < order.index(job.name) for name in job.needs)
        assert job.on_device == (job.name != "data")


def test_another_number_of_seeds_is_another_ensemble_and_the_same_models(plan, benchmark):
    key_of = benchmark("learning_jobs").key_of
    two, three = plan(), plan(seeds=3)
    changed = {name for name in two if key_of(two[name], two) != key_of(three[name], three)}
    assert changed == {"online-ensemble"}


@pytest.fixture
def commands(plan, learning_rm, tmp_path, monkeypatch):
    """commands(job, **changes): what a job of the plan runs, nothing of which is, and the servers that it starts."""

    @contextmanager
    def serving(command, port, log):
        served.append(list(map(str, command)))
        yield

    served = []
    monkeypatch.setattr(learning_rm, "serving", serving)

    def of(name, **changes):
        served.clear()
        ran = []

        def run(command, env=None):
            ran.append(list(map(str, command)))
            (tmp_path / "work" / name / "run" / "huggingface").mkdir(parents=True, exist_ok=True)

        folder = tmp_path / "work" / name
        folder.mkdir(parents=True, exist_ok=True)
        plan(**changes)[name].do(folder, run)
        return ran, list(served)

    return of


def composed(command):
    """A training command as verl reads it."""
    from hydra import compose, initialize_config_module

    assert command[1:3] == ["-m", "verl.trainer.main_ppo"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=command[3:])


def ours(command):
    """A command of verl-aiops as its own parser takes it."""
    assert command[1:3] == ["-m", "verl_aiops.cli"]
    return make_parser().parse_args(command[3:])


@pytest.mark.parametrize("device, size", [("cpu", "tiny"), ("cuda", "full")])
@pytest.mark.parametrize("kind", ["pairs", "groups"])
def test_our_reward_models_take_as_many_answers_a_step(commands, learning_rm, kind, device, size):
    (train, rank), _ = commands(f"{kind}-s1", device=device, size=size)
    config = composed(train)
    pairs, answers = learning_rm.SIZES[size]["rm"]["batch"], learning_rm.SIZES[size]["per_incident"]
    groups = kind == "groups"
    assert config.data.train_batch_size == (pairs // answers if groups else pairs)
    assert config.algorithm.adv_estimator == "rm"
    assert config.algorithm.rm.loss_type == ("plackett_luce" if groups else "bradley_terry")
    assert config.data.seed == config.actor_rollout_ref.actor.fsdp_config.seed == 1
    assert config.data.train_files.endswith(f"{kind}.parquet") and config.data.val_files.endswith("pairs.val.parquet")
    asked = ours(rank)
    assert asked.command == "eval" and asked.rm.endswith(f"{kind}-s1/model") and asked.dtype == "float32"


def test_trls_model_sees_the_same_pairs_with_all_weights(commands):
    (train, rank), _ = commands("trl-s0")
    asked = ours(train)
    assert (asked.command, asked.backend, asked.lora_rank, asked.seed) == ("train-rm", "trl", 0, 0)
    assert asked.data[0].endswith("data/pairs.parquet") and asked.val[0].endswith("data/pairs.val.parquet")
    assert ours(rank).rm == asked.out


@pytest.mark.parametrize("by", ["rule", "rm", "ensemble", "judge"])
def test_online_runs_differ_in_who_ranks(commands, by):
    ran, served = commands(f"online-{by}")
    config = composed(next(one for one in ran if one[2] == "verl.trainer.main_ppo"))
    assert config.algorithm.adv_estimator == "online_dpo" and config.data.seed == 0
    assert config.actor_rollout_ref.model.path.endswith("policy/model")
    assert config.reward.reward_model.enable == (by in ("rm", "ensemble"))
    assert ours(ran[-1]).model.endswith(f"online-{by}/model")
    if by in ("rm", "ensemble"):
        from omegaconf import OmegaConf

        from verl_aiops.rewards.model.combined import CombinedSettings

        combined = CombinedSettings.from_section(OmegaConf.to_container(config.reward.combined))
        assert combined.mode == "rm_only" and len(combined.others) == len(served) == int(by == "ensemble")
        assert config.algorithm.online_dpo.get("members_agree", False) == (by == "ensemble")
        for member, command in zip(combined.others, served):
            asked = ours(command)
            assert asked.model == member.path and member.address == f"127.0.0.1:{asked.port}"
    if by == "judge":
        from verl_aiops.rewards.model.judge_settings import JudgeSettings

        asked = JudgeSettings.of_run(dict(config.reward.custom_reward_function.reward_kwargs))
        (stub,) = served
        assert stub[2] == "stub" and asked.url == f"http://127.0.0.1:{stub[-1]}/v1/chat/completions"
        assert [one[1].rpartition("/")[2] for one in ran[:1]] == ["learning_judge.py"] and asked.url in ran[0]


def test_data_is_one_set_of_incidents_in_three_forms(commands, learning_rm, tmp_path, monkeypatch):
    monkeypatch.setattr(learning_rm, "write_lessons", lambda pairs, out: out.write_text(pairs.name))
    ran, _ = commands("data")
    names = [ours(one).command for one in ran]
    assert names == ["simulate", "build-prefs", "build-prefs", "build-rl"]
    assert ["--groups" in one for one in ran[1:3]] == [False, True]
    assert len({one[one.index("--incidents") + 1] for one in ran[1:]}) == 1
    assert len({one[one.index("--val-share") + 1] for one in ran[1:]}) == 1
    assert (tmp_path / "work" / "data" / "lessons.jsonl").read_text() == "pairs.parquet"


# --- what has been found ----------------------------------------------------------------------------------------------


def share(value, width=0.05):
    return {"value": value, "low": value - width, "high": value + width, "n": 40, "groups": 20}


def write(path, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what))


def step(number, **more):
    return json.dumps({"step": number, "data": {"timing_s/step": 2.0 + number, "reward/score": 0.1 * number, **more}})


@pytest.fixture
def work(tmp_path):
    """What two seeds of models and an online run by the reward model have left."""
    folder = tmp_path / "work"
    for seed, right in enumerate((0.8, 0.9)):
        write(folder / f"pairs-s{seed}" / "eval" / "summary.json", {"ranking": {"accuracy": share(right)}})
    write(folder / "groups-s1" / "eval" / "summary.json", {"ranking": {"accuracy": share(0.7)}})
    curve = {str(k): {name: share(0.4 + 0.1 * at) for name in ("rm", "rule", "chance")} for at, k in enumerate((1, 2))}
    write(folder / "best-of-n" / "eval" / "summary.json", {"best_of_n": curve})
    for name, right in (("policy", 0.5), ("online-rm", 0.6)):
        metrics = {metric: share(right) for metric in ("acc_main", "json_ok", "score")}
        write(folder / name / "eval" / "summary.json", {"overall": {"metrics": metrics}})
    lines = [step(1, **{"reward/rule": 0.2}), step(2, **{"reward/rule": None}), step(3), '{"step": 4, "da']
    (folder / "online-rm" / "metrics.jsonl").write_text("\n".join(lines))
    write(folder / "online-judge" / "judge.json", {"accuracy": share(0.75), "ties": 0.125})
    (folder / "online-judge" / "metrics.jsonl").write_text('{"step": 0, "data": {"val": 1.0}}\n')
    return folder


@pytest.fixture
def finished(learning_rm, tmp_path, capsys):
    """finished(own): the JSON that is written, and what is said; a warning is an error."""

    def run(own, **more):
        arguments = argparse.Namespace(out=tmp_path / "out", work=tmp_path / "work", device="cpu", size="tiny")
        vars(arguments).update({"seeds": 2, "incidents": "/some/where/incidents.jsonl", **more})
        runner = SimpleNamespace(seconds={"data": 3.0}, failed={"online-judge": "no time left"})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            learning_rm.finish(arguments, runner, {"n": 2}, own)
        return json.loads((tmp_path / "out" / "learning_rm.json").read_text()), capsys.readouterr().out

    return run


ALL = (
    "policy",
    "best-of-n",
    "online-rm",
    "online-judge",
    *(f"{kind}-s{at}" for kind in ("pairs", "groups") for at in (0, 1)),
)


def test_what_is_there_is_in_one_file_a_table_and_a_picture(finished, work, tmp_path):
    result, said = finished(ALL)
    accuracies = {kind: [one and one["accuracy"]["value"] for one in of] for kind, of in result["ranking"].items()}
    assert accuracies == {"pairs": [0.8, 0.9], "groups": [None, 0.7]}
    online = result["online"]["rm"]
    # the first step waits for what is loaded; the last line was cut in the middle
    assert online["steps"] == 3 and online["seconds"]["timing_s/step"] == 4.5
    assert online["of_steps"]["reward/rule"] == [0.2, None, None] and online["held_out"]["acc_main"]["value"] == 0.6
    assert set(result["online"]) == {"rm"} and result["incidents"] == "incidents.jsonl"
    for line in (
        "ours, pairs    pairs ranked right: 80.0 % [75.0, 85.0], 90.0 % [85.0, 95.0]",
        "ours, groups   pairs ranked right: 70.0 % [65.0, 75.0]",
        "judge          pairs ranked right: 75.0 % [70.0, 80.0], ties 12.5%",
        "best of 2: rm 0.500, rule 0.500, chance 0.500",
        "online DPO by reward model: 3 steps of 4.50 s, held out both fields right 60.0 % [55.0, 65.0]",
    ):
        assert line in said.splitlines()
    assert (tmp_path / "out" / "metrics" / "online-rm.jsonl.gz").is_file()
    pytest.importorskip("matplotlib")
    assert (tmp_path / "out" / "learning_rm.png").read_bytes().startswith(b"\x89PNG")


def test_what_ours_ranks_right_beyond_trls_is_of_the_same_pairs(finished, work, tmp_path):
    def ranked(kind, seed, margins):
        lines = [{"id": f"{n}", "group": f"f{n // 2}", "scores": [by, 0.0]} for n, by in enumerate(margins)]
        (work / f"{kind}-s{seed}" / "eval").mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps({**line, "file": f"{work}/data"}) + "\n" for line in lines)
        (work / f"{kind}-s{seed}" / "eval" / "ranked.jsonl").write_text(text)

    for seed in (0, 1):
        ranked("pairs", seed, [1.0] * 30 + [0.0] * 10)
        ranked("trl", seed, [1.0] * 20 + [-1.0] * 20)
        ranked("groups", seed, [1.0] * 39)  # one pair fewer: nothing to be compared
    own = (*ALL, "trl-s0", "trl-s1")
    less = finished(own)[0]["less_trl"]
    assert set(less) == {"pairs"} and less["pairs"]["value"] == pytest.approx((30 + 5 - 20) / 40)
    assert less["pairs"]["low"] < less["pairs"]["value"] < less["pairs"]["high"]
    kept = (tmp_path / "out" / "answers" / "pairs-s0.jsonl.gz").read_bytes()
    assert str(work).encode() not in gzip.decompress(kept) and len(gzip.decompress(kept).splitlines()) == 40
    assert finished(own[:-1])[0]["less_trl"] == {}
    assert (tmp_path / "out" / "answers" / "pairs-s0.jsonl.gz").read_bytes() == kept


def test_figures_that_are_kept_are_those_of_the_scores_beside_them():
    folder = FOLDER / "results" / "learning" / "rm"
    result = json.loads((folder / "learning_rm.json").read_text())
    for kind, seeds in result["ranking"].items():
        for seed, told in enumerate(seeds):
            lines = gzip.decompress((folder / "answers" / f"{kind}-s{seed}.jsonl.gz").read_bytes()).splitlines()
            scores = [json.loads(line)["scores"] for line in lines]
            right = sum((better > worse) + 0.5 * (better == worse) for better, worse in scores) / len(scores)
            assert told["accuracy"]["value"] == pytest.approx(right), (kind, seed)


def test_nothing_done_is_said_without_a_warning(finished):
    result, _ = finished(())
    assert result["ranking"] == result["online"] == {} and result["judge"] is result["before"] is None
    assert result["not_done"] == {"online-judge": "no time left"}


def test_what_other_settings_have_left_is_no_result(finished, work, plan, learning_rm, benchmark):
    key_of = benchmark("learning_jobs").key_of
    jobs = plan()
    for name in ("pairs-s0", "online-rm"):
        (work / name / "key").write_text(key_of(jobs[name], jobs))
    (work / "policy" / "key").write_text("of another size")
    own = learning_rm.of_these_settings(list(jobs.values()), work)
    assert own == {"pairs-s0", "online-rm"}
    result, _ = finished(own)
    assert result["ranking"]["pairs"][1] is None and result["before"] is None and set(result["online"]) == {"rm"}
    assert result["best_of_n"] is None


# --- the judge --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {
            "chosen": [{"role": "user", "content": "?"}, {"role": "assistant", "content": f"right {at}"}],
            "rejected": [{"role": "user", "content": "?"}, {"role": "assistant", "content": f"wrong {at}"}],
            "incident_text": f"log {at}",
            "kind": ("wrong_service", "wrong_both")[at % 2],
            "group": f"g{at // 2}",
        }
        for at in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet"


def test_lessons_are_the_verdicts_that_the_strict_form_takes(benchmark, pairs, tmp_path):
    benchmark("learning_judge").write_lessons(pairs, tmp_path / "lessons.jsonl")
    lessons = [json.loads(line) for line in (tmp_path / "lessons.jsonl").read_text().splitlines()]
    marks = []
    for lesson in lessons:
        prompt, said, other = (lesson[key][-1]["content"] for key in ("prompt", "chosen", "rejected"))
        word = said.partition(":")[0]
        assert f"\n{word}: N\n" in prompt
        marks.append(int(verdict_of(said, word, "10|[0-9]")))
        assert verdict_of(other, word, "10|[0-9]") != said.rpartition(" ")[2]
    assert marks == [10, 5, 10, 0] * 3 and len({one["chosen"][0]["content"].partition(":")[0] for one in lessons}) == 12
    assert [one["group"] for one in lessons] == [f"g{at // 4}" for at in range(12)]


@pytest.fixture
def stub(benchmark):
    """The judge that knows nothing, behind HTTP."""
    module = benchmark("learning_judge")
    server = ThreadingHTTPServer(("127.0.0.1", 0), module._Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield module, server.server_address[1]
    server.shutdown()
    server.server_close()


def test_the_judge_is_measured_as_the_training_asks_it(stub, pairs):
    module, port = stub
    found = module.measure(f"http://127.0.0.1:{port}/v1/chat/completions", "judge", pairs, 4)
    assert found["accuracy"]["n"] == 4 and 0 <= found["accuracy"]["value"] <= 1 and found["without_verdict"] == 0
    assert found["metrics"]["judge/requests"] == 8
    again = module.measure(f"http://127.0.0.1:{port}/v1/chat/completions", "judge", pairs, 4)
    assert again["accuracy"] == found["accuracy"], "marks are of what is judged, not of the request's random part"


def test_the_runs_reward_is_the_mark_and_has_the_rules_score_beside_it(stub, tmp_path):
    module, port = stub
    scope = {}
    exec(module.REWARD, scope)
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    truth = {"service": "db", "incident_type": "disk"}
    answer = json.dumps(truth)
    found = asyncio.run(
        scope["compute_score"]("d", answer, truth, {"incident_text": "log"}, url=url, model="judge", max_tokens=40)
    )
    assert found["rule"] > 0.5 and found["acc_main"] == 1.0 and found["score"] * 10 in range(11)


# --- servers ----------------------------------------------------------------------------------------------------------


def test_a_server_is_there_while_it_is_needed(benchmark, tmp_path):
    servers = benchmark("learning_servers")
    (tmp_path / "health").write_text("ok")
    port = servers.free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with servers.serving(command, port, tmp_path / "log.txt", wait_s=20):
        assert servers._healthy(port)
    assert not servers._healthy(port)


def test_a_server_that_ends_is_told_with_its_last_words(benchmark, tmp_path):
    servers = benchmark("learning_servers")
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match="(?s)no server after .*no such model"):
        with servers.serving(command, servers.free_port(), tmp_path / "log.txt", wait_s=20):
            raise AssertionError("never served")


def test_what_speaks_no_http_is_no_server(benchmark):
    import socket

    servers = benchmark("learning_servers")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet():
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        assert not servers._healthy(listening.getsockname()[1])
        thread.join()
