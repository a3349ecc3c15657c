"""Baselines: what they learn, what they may not see, and the folders that they write."""

import json
import random
import sys

import pytest

from verl_aiops.cli.main import main
from verl_aiops.evaluation.baseline.asked import OTHER, SELF, Asked, changes
from verl_aiops.evaluation.baseline.run import METHODS, baseline
from verl_aiops.evaluation.baseline.simple import Majority, Rule
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.results import read_lines

TYPES = ("oom", "disk_full")
SAID = {
    "en": {"oom": "ran out of memory", "disk_full": "no space left"},
    "zh": {"oom": "内存耗尽", "disk_full": "磁盘写满"},
}


def row(number, source, services, lang="en", seed=0):
    """One service says what is wrong with it, all others that they suffer; who it is, is drawn."""
    rng = random.Random(f"{seed}/{source}/{number}")
    culprit, kind = rng.choice(services), rng.choice(TYPES)
    lines = [
        f"ERROR {name} {'请求超时' if lang == 'zh' else 'request timed out'}" for name in services if name != culprit
    ]
    lines.append(f"ERROR {culprit} {SAID[lang][kind]}")
    rng.shuffle(lines)
    text = "\n".join(lines)
    truth = {"service": culprit, "incident_type": kind, "candidates": {"service": services, "incident_type": TYPES}}
    extra = {"id": f"{source}-{number}", "source": source, "lang": lang, "incident_text": text, "rounds": ["Verdict:"]}
    return {
        "prompt": [{"role": "user", "content": f"<incident>\n{text}\n</incident>"}],
        "reward_model": {"ground_truth": json.dumps(truth)},
        "extra_info": extra,
    }


def written(path, rows):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Two systems to learn from; asked are incidents of theirs and of a system with names of its own."""
    known = {"shop": ["cart", "cart-db", "web", "pay"], "bank": ["ledger", "rates", "cards"]}
    train = [row(n, source, names) for source, names in known.items() for n in range(40)]
    val = [row(n, source, names, seed=1) for source, names in known.items() for n in range(100, 115)]
    val += [row(n, "new", ["search", "index", "crawler"], seed=1) for n in range(20)]
    return written(tmp_path / "rl.jsonl", train), written(tmp_path / "rl.val.jsonl", val)


def right(folder, source=None):
    lines = [line for line in read_lines(folder / "generations.jsonl") if source in (None, line["source"])]
    return sum(line["score"]["acc_main"] for line in lines) / len(lines)


def test_the_linear_ones_learn_the_rule_for_systems_that_they_have_not_seen_too(files, tmp_path):
    pytest.importorskip("sklearn")
    baseline(*files, tmp_path / "out")
    shares = {name: (right(tmp_path / "out" / name), right(tmp_path / "out" / name, "new")) for name in METHODS}
    assert shares["linear"] == shares["linear_values"] == (1.0, 1.0)
    # every line is an error, so neither rule can tell the cause from what suffers
    assert max(shares["majority"]) < 0.6 and max(shares["rule"]) < 0.9


def test_it_learns_from_chinese(tmp_path):
    pytest.importorskip("sklearn")
    rows = [row(n, "商店", ["购物车", "支付", "网关"], lang="zh") for n in range(60)]
    files = written(tmp_path / "rl.jsonl", rows[:40]), written(tmp_path / "val.jsonl", rows[40:])
    baseline(*files, tmp_path / "out", ["linear"])
    assert right(tmp_path / "out" / "linear") == 1.0


def test_truths_of_the_asked_side_change_no_answer(files, tmp_path):
    pytest.importorskip("sklearn")
    data, val = files
    rows = [json.loads(line) for line in open(val, encoding="utf-8")]
    rng = random.Random(0)
    for one in rows:
        truth = json.loads(one["reward_model"]["ground_truth"])
        for field, names in truth["candidates"].items():
            truth[field] = rng.choice(names)
        one["reward_model"]["ground_truth"] = json.dumps(truth)
    shuffled = written(tmp_path / "shuffled.jsonl", rows)
    baseline(data, val, tmp_path / "true")
    baseline(data, shuffled, tmp_path / "shuffled")
    for name in METHODS:
        first, second = (read_lines(tmp_path / side / name / "generations.jsonl") for side in ("true", "shuffled"))
        assert [line["ground_truth"] for line in first] != [line["ground_truth"] for line in second]
        assert [line["predicted"] for line in first] == [line["predicted"] for line in second]


def test_answers_are_names_that_the_row_offers(files, tmp_path):
    pytest.importorskip("sklearn")
    data, val = files
    baseline(data, val, tmp_path / "out")
    for name in METHODS:
        for line in read_lines(tmp_path / "out" / name / "generations.jsonl"):
            offered = line["ground_truth"]["candidates"]
            assert line["predicted"]["service"] in offered["service"]
            assert line["predicted"]["incident_type"] in offered["incident_type"]
            assert line["rounds"][:-1] == [""]


def test_a_row_without_candidates_is_asked_for_the_names_of_its_system(files, tmp_path):
    data, val = files
    rows = [json.loads(line) for line in open(val, encoding="utf-8")]
    for one in rows:
        truth = json.loads(one["reward_model"]["ground_truth"])
        del truth["candidates"]
        one["reward_model"]["ground_truth"] = json.dumps(truth)
    baseline(data, written(tmp_path / "open.jsonl", rows), tmp_path / "out", ["rule"])
    lines = read_lines(tmp_path / "out" / "rule" / "generations.jsonl")
    assert {line["predicted"]["service"] for line in lines if line["source"] == "bank"} <= {"ledger", "rates", "cards"}
    assert {line["predicted"]["service"] for line in lines if line["source"] == "new"}


def asked(text, services, types=TYPES, source="shop"):
    return Asked(source, tuple(text.split("\n")), tuple(services), tuple(types))


def test_names_are_masked_as_whole_words_the_longest_first():
    one = asked("db01 calls ledger-db and dbms\nnothing here", ["db", "ledger-db"])
    assert one.named == (("db", "ledger-db"), ())
    assert [line.split() for line in one.lines_of("db")] == [[SELF + "", "01", "calls", OTHER, "and", "dbms"]]


def test_changes_are_powers_of_two_of_the_usual_value():
    line = "metric x CpuUsageRate(%)=80.6 (usual 2.5) p99_ms=30 (usual 31)"
    assert list(changes(line)) == [("cpuusagerate", 5), ("p99_ms", 0)]
    assert list(changes("span a -> b GET /x 8065 ms (usual 2016) ok")) == [("x", 2)]
    assert list(changes("y=5 (usual 0) z=0 (usual 9)")) == [("y", 6), ("z", -4)]


def test_the_rule_takes_the_last_bad_callee_then_the_severest_lines():
    rule = Rule()
    rule.fit([asked("ERROR web ran out of memory", ["web"])] * 3, [("web", "oom")] * 3)
    spans = ["FATAL web gone", "span user -> web GET /x 90 ms error", "span web -> pay GET /y 80 ms (usual 3) ok"]
    spans.append("span web -> db 3 ms ok")
    assert rule.answer([asked("\n".join(spans), ["web", "pay", "db"])]) == [("pay", "oom")]
    logs = ["WARN web slow"] * 3 + ["ERROR pay refused"] * 2 + ["ERROR db refused", "INFO db fine"]
    assert rule.answer([asked("\n".join(logs), ["db", "web", "pay"])])[0][0] == "pay"


def test_the_majority_is_that_of_the_source_among_what_is_offered():
    majority = Majority()
    rows = [asked("", ["web", "pay"])] * 3 + [asked("", ["web"], source="bank")] * 4
    majority.fit(rows, [("pay", "oom")] * 2 + [("web", "oom")] + [("web", "disk_full")] * 4)
    assert majority.answer([asked("", ["web", "pay"])]) == [("pay", "oom")]
    assert majority.answer([asked("", ["web"])]) == [("web", "oom")]
    assert majority.answer([asked("", ["web", "pay"], source="new")]) == [("web", "disk_full")]
    assert majority.answer([asked("", ["x", "y"], ["z"], source="new")]) == [("x", "z")]


def test_compare_takes_a_baseline_like_a_model(files, tmp_path, capsys):
    data, val = files
    assert (
        main(["baseline", "--data", data, "--val", val, "--methods", "majority,rule", "--out", str(tmp_path / "b")])
        == 0
    )
    table = capsys.readouterr().out
    assert "both fields right" in table and "rule" in table
    runs = [f"{name}={tmp_path / 'b' / name}" for name in ("majority", "rule")]
    assert main(["compare", *runs, "--no-plots", "--out", str(tmp_path / "c")]) == 0
    summary = json.loads((tmp_path / "b" / "baseline.json").read_text())
    assert summary["rows"] == {"train": 80, "val": 50}
    assert set(summary["methods"]["rule"]["seconds"]) == {"reading", "fitting", "answering"}
    assert summary["methods"]["rule"]["overall"]["acc_main"]["value"] == pytest.approx(right(tmp_path / "b" / "rule"))


def test_incidents_are_split_and_cut_as_build_rl_would(tmp_path, capsys):
    """Other cuts are other rows, and what they are made of is the same as by the two commands."""
    file, rl = str(tmp_path / "i.jsonl"), tmp_path / "rl.parquet"
    assert main(["simulate", "--out", file, "--num-incidents", "80", "--difficulty", "hard"]) == 0
    options = ["--incidents", file, "--trim", "blind", "--val-trim", "evidence", "--max-chars", "600"]
    options += ["--val-share", "0.3"]
    assert main(["build-rl", *options, "--out", str(rl)]) == 0
    assert main(["baseline", *options, "--methods", "rule", "--out", str(tmp_path / "b")]) == 0
    assert "incidents blind, as a model is served" in capsys.readouterr().out
    for side in ("rl", "rl.val"):
        assert (tmp_path / "b" / f"{side}.parquet").read_bytes() == (tmp_path / f"{side}.parquet").read_bytes()
    assert len(list(read_lines(tmp_path / "b" / "rule" / "generations.jsonl"))) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --data FILE and --val FILE, or --incidents FILE alone"),
        (["--data", "a", "--val", "b", "--trim", "blind"], "--trim: goes with --incidents"),
        (["--data", "a", "--incidents", "b"], "--incidents stands instead of --data and --val"),
    ],
)
def test_one_way_of_naming_the_sides(options, message, tmp_path, capsys):
    assert main(["baseline", *options, "--out", str(tmp_path / "b")]) == 2
    assert message in capsys.readouterr().err


def test_a_fault_on_both_sides_is_refused(files, tmp_path):
    data, _ = files
    with pytest.raises(EvaluationError, match="80 faults are in both, such as 'bank-0'"):
        baseline(data, data, tmp_path / "out", ["majority"])
    assert not (tmp_path / "out").exists()


def test_unknown_methods_are_refused(files, tmp_path):
    for methods in (["magic"], [], ["rule", "rule"]):
        with pytest.raises(EvaluationError, match="expected some of majority, rule, linear"):
            baseline(*files, tmp_path / "out", methods)


def test_without_scikit_learn_the_message_says_what_to_do(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    data, val = files
    assert main(["baseline", "--data", data, "--val", val, "--out", str(tmp_path / "b")]) == 2
    assert 'pip install "verl-aiops[baseline]"' in capsys.readouterr().err
    assert main(["baseline", "--data", data, "--val", val, "--out", str(tmp_path / "b"), "--methods", "rule"]) == 0


def test_nothing_to_tell_apart_is_no_fault(tmp_path):
    """One candidate each, one type, empty lines: nothing can be learned, and every row still has its answer."""
    pytest.importorskip("sklearn")
    rows = [row(n, "one", ["web"]) for n in range(4)]
    for one in rows:
        truth = json.loads(one["reward_model"]["ground_truth"])
        truth |= {"incident_type": "oom", "candidates": {"service": ["web"], "incident_type": ["oom"]}}
        one["reward_model"]["ground_truth"] = json.dumps(truth)
        one["extra_info"]["incident_text"] = ""
        one["prompt"][0]["content"] = "\n"
    files = written(tmp_path / "rl.jsonl", rows[:1]), written(tmp_path / "val.jsonl", rows[1:])
    baseline(*files, tmp_path / "out")
    assert all(right(tmp_path / "out" / name) == 1.0 for name in METHODS)


def test_labels_of_further_fields_are_among_those_that_a_row_offers(tmp_path):
    from verl_aiops.evaluation.baseline.asked import asked_of, known_of
    from verl_aiops.evaluation.baseline.labels import UsualLabels
    from verl_aiops.evaluation.run.questions import read_rl_questions

    rows = []
    told = [("high", ["high", "low"])] * 3 + [("low", ["low", "mid"]), (None, [])]
    for number, (severity, offered) in enumerate(told):
        made = row(number, "shop" if number < 4 else "new", ["a", "b"])
        truth = json.loads(made["reward_model"]["ground_truth"]) | {"severity": severity}
        truth["fields"] = ["service", "incident_type", "severity"]
        truth["candidates"]["severity"] = offered
        rows.append({**made, "reward_model": {"ground_truth": json.dumps(truth)}})
    (tmp_path / "rl.jsonl").write_text("".join(json.dumps(made) + "\n" for made in rows))
    questions = read_rl_questions(str(tmp_path / "rl.jsonl"))
    known = known_of(questions)
    asked = [asked_of(question, known) for question in questions]
    usual = UsualLabels()
    usual.fit(questions, asked, ["a"] * 5)
    said = [dict(labels)["severity"] for labels in usual.answer(questions, asked, ["a"] * 5)]
    # what the row offers; of a new source the most frequent one of all
    assert said == ["high", "high", "high", "low", "high"]
    assert usual.size == 4
