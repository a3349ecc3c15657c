"""What reads files that users have: valid files of every kind, and what is run on them after one was damaged."""

import contextlib
import copy
import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from compare_harness import Guessing, evaluated, questions_of, right_answer
from import_harness import (
    ROCKET_MAPPING,
    make_loghub,
    make_nezha,
    make_openrca,
    nezha_fault,
    petshop_issue,
    petshop_metrics,
    rocket_mapping,
    write_csv,
)

from verl_aiops.cli import main as cli
from verl_aiops.incidents import (
    PromptOptions,
    Simulator,
    build_prefs,
    build_rl,
    build_sft,
    simulator_source,
    simulator_taxonomy,
)
from verl_aiops.incidents.importers import SOURCES, built_in


@dataclass
class Target:
    """`files` are damaged one at a time, by name in `folder`; `run(name)` uses them.

    `run` returns what was said, or None; what it raises and `raises` does not name is a fault, and so is a message that
    does not name one of `named(name)`.
    """

    name: str
    folder: Path
    files: list[str]
    run: object
    raises: tuple = ()
    named: object = lambda name: [Path(name).name]
    contents: dict = field(default_factory=dict)

    def __post_init__(self):
        self.contents = {name: (self.folder / name).read_bytes() for name in self.files}

    def restore(self):
        for name, content in self.contents.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def command(*arguments):
    """The exit code of `verl-aiops`, and all it printed."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main([str(argument) for argument in arguments])
    return code, out.getvalue(), errors.getvalue()


def said(*arguments):
    code, _, errors = command(*arguments)
    assert code or "error:" not in errors, (code, errors)
    return errors or None


def _pairs():
    user, reply = {"role": "user", "content": "Which?"}, {"role": "assistant", "content": "db"}
    call = {"type": "function", "function": {"name": "look", "arguments": {"host": "a"}}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    texts = {"prompt": "Which failed?", "chosen": "the db", "rejected": "the cache"}
    return [
        texts | {"id": "a", "group": "g", "weight": 0.5},
        texts | {"chosen": "other", "id": 7},
        {"prompt": [user], "chosen": [reply], "rejected": [reply | {"content": "x"}], "weight": 1},
        {"chosen": [user, reply], "rejected": [user, reply | {"content": "y"}]},
        {"prompt": [user], "chosen": [reply | {"tool_calls": [call]}], "rejected": [reply], "tools": tools},
    ]


def _groups():
    user, reply = {"role": "user", "content": "Which failed?"}, {"role": "assistant", "content": "the db"}
    return [
        {"prompt": "Which failed?", "completions": ["the db", "the cache", "a disk"], "ranks": [1, 2, 2]},
        {"prompt": [user], "completions": [{"messages": [reply], "score": 0.5}, {"text": "x", "score": 1}]},
        {"prompt": [user], "completions": [{"content": "y", "rank": 1}, {"content": "z", "rank": 2}], "id": 3},
        {"prompt": "Which failed?", "completion": "the db", "label": True, "weight": 0.5},
        {"prompt": [user], "completion": [reply], "label": False},
    ]


def _verdicts():
    return [
        {"prompt": "Which failed?", "answer": "the db", "verdict": "accepted", "weight": 2},
        {"prompt": "Which failed?", "answer": "the cache", "verdict": "corrected", "correction": "the db"},
        {"id": "a", "answer": "no idea", "verdict": "refused", "group": "g"},
    ]


def _write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, compression="none")


def pairs(folder, tokenizer):
    from verl_aiops.data import PreferenceDataError, PreferenceDataset
    from verl_aiops.trl.reward_data import read_reward_pairs

    _write_lines(folder / "pairs.jsonl", _pairs())
    _write_parquet(folder / "pairs.parquet", [row | {"id": "b"} for row in _pairs()[:2]])
    _write_parquet(folder / "talks.parquet", _pairs()[2:3] * 3)

    _write_lines(folder / "groups.jsonl", [*_groups(), *_pairs()[:1]])
    _write_parquet(folder / "groups.parquet", _groups()[:1] * 2)

    def mixed(name):
        limits = {"max_prompt_length": 256, "max_response_length": 256}
        data = PreferenceDataset(str(folder / name), tokenizer, **limits, progress=False, kinds={"pair", "single"})
        assert len(data.answer_digests()) > data.answer_numbers.max()

    def dpo(name):
        PreferenceDataset(
            str(folder / name), tokenizer, max_prompt_length=256, max_response_length=256, progress=False
        ).identity()

    def reward(name):
        with contextlib.redirect_stderr(io.StringIO()):
            read_reward_pairs(str(folder / name), tokenizer, 256, max_too_long_share=1.0)

    names = ["pairs.jsonl", "pairs.parquet", "talks.parquet"]
    yield Target("pairs", folder, names, dpo, (PreferenceDataError,))
    yield Target("reward pairs", folder, names, reward, (PreferenceDataError,))
    yield Target("groups", folder, ["groups.jsonl", "groups.parquet"], mixed, (PreferenceDataError,))


def verdicts(folder):
    _write_lines(folder / "log.jsonl", _verdicts())
    _write_lines(
        folder / "prompts.jsonl", [{"id": "a", "prompt": "Why?"}, {"id": "b#0", "prompt": _pairs()[2]["prompt"]}]
    )
    names = ["prompt", "id", "answer", "verdict", "correction", "group", "weight"]
    write_csv(folder / "log.csv", names, [[row.get(name) for name in names] for row in _verdicts()])
    options = ["--out", folder / "out.jsonl", "--overwrite", "--prompts", folder / "prompts.jsonl"]

    def feedback(name):
        return said("feedback", folder / ("log.jsonl" if name == "prompts.jsonl" else name), *options)

    # a prompt that is gone is the fault of the log's row
    yield Target("verdicts", folder, ["log.jsonl", "log.csv", "prompts.jsonl"], feedback)


def incidents(folder):
    rows = [incident.to_dict() for incident in Simulator(lang="mix", difficulty="mix", seed=3).stream(4)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    _write_lines(folder / "incidents.jsonl", rows)
    _write_parquet(folder / "incidents.parquet", rows)
    cells = [
        [json.dumps(v, ensure_ascii=False) if isinstance(v := row.get(name), list | dict) else v for name in names]
        for row in rows
    ]
    write_csv(folder / "incidents.csv", names, cells)
    (folder / "taxonomy.json").write_text(json.dumps(simulator_taxonomy().to_dict()), encoding="utf-8")
    options = ["--val-share", "0", "--overwrite", "--out", folder / "out.jsonl", "--incidents"]

    def build(name):
        return said("build-prefs", *options, folder / name, "--pairs-per-incident", "1")

    def with_taxonomy(name):
        return said("build-sft", *options, folder / "incidents.jsonl", "--taxonomy", folder / name)

    yield Target("incidents", folder, ["incidents.jsonl", "incidents.csv", "incidents.parquet"], build)
    yield Target("taxonomy", folder, ["taxonomy.json"], with_taxonomy)


def _data_set(name, root):
    if name == "loghub":
        return make_loghub(root, ["E1", "E1", "E2", "E1", "E1", "E1", "E2", "E1"])
    if name == "nezha":
        return make_nezha(root, [nezha_fault("10:00:30", "ts-cart", "cpu_contention")])
    if name == "openrca":
        make_openrca(root)
        day = root / "Bank" / "telemetry" / "2021_03_04"
        write_csv(day / "metric" / "m.csv", ["timestamp", "cmdb_id", "kpi_name", "value"],
                  [[1614841020 + at, "Fox01", "cpu", at % 3] for at in range(0, 900, 60)])  # fmt: skip
        write_csv(day / "log" / "l.csv", ["log_id", "timestamp", "cmdb_id", "value"], [[1, 1614841030, "Fox01", "bad"]])
        return root
    series = {("Shop", "latency", "Average"): [1.0], ("till", "latency", "p90"): [2.0]}
    petshop_metrics(root / "dataset" / "high_traffic" / "noissue" / "metrics.csv", series)
    petshop_issue(root / "dataset/high_traffic/test/issue_0", "till", "latency", "searchdelay", series)
    return root


def imports(folder):
    for name in SOURCES:
        root = _data_set(name, folder / name)
        mapping = folder / f"{name}.yaml"
        rocket_mapping(folder, ROCKET_MAPPING).rename(mapping)
        if name != "loghub":
            shutil.copy(built_in(name), mapping)
        # short ones, as JSON too (which is YAML), so that values are damaged and not bytes alone
        as_json = folder / f"{name}.mapping.json"
        as_json.write_text(json.dumps(yaml.safe_load(mapping.read_text(encoding="utf-8"))), encoding="utf-8")
        rest = ["--overwrite", "--out", folder / f"imported_{name}.jsonl"]

        def data(file, name=name, root=root, mapping=mapping, rest=rest):
            return said("import", name, root, "--mapping", mapping, *rest)

        def mapped(file, name=name, root=root, rest=rest):
            return said("import", name, root, "--mapping", folder / file, *rest)

        files = [str(path.relative_to(folder)) for path in sorted(root.rglob("*")) if path.is_file()]
        # where a file leaves nothing to import, the data set is named
        named = lambda file, name=name: [Path(file).name, f"/{name}"]  # noqa: E731
        yield Target(f"{name} data", folder, files, data, named=named)
        yield Target(f"{name} mapping", folder, [mapping.name, as_json.name], mapped, named=named)


def evaluations(folder):
    from verl_aiops.data.errors import PreferenceDataError
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.run.questions import read_rl_questions

    build_rl(
        simulator_source(Simulator(seed=2), 5), folder / "rl.jsonl", val_share=0, prompts=PromptOptions(budget=300)
    )
    build_rl(simulator_source(Simulator(seed=2), 3), folder / "rl.parquet", val_share=0)
    questions = read_rl_questions(str(folder / "rl.jsonl"))
    for name, skill in (("before", 0.2), ("after", 0.5)):
        evaluated(folder / name, questions, Guessing(skill, form=0.8, seed=len(name)), samples=3,
                  data=str(folder / "rl.jsonl"), limit=None, seed=0, reward={})  # fmt: skip
    options = ["--overwrite", "--out", folder / "out"]
    files = [f"after/{name}" for name in ("generations.jsonl", "settings.json", "summary.json")]

    def compare(name):
        return said("compare", folder / "before", folder / "after", "--no-plots", *options)

    def resume(name):
        with contextlib.redirect_stderr(io.StringIO()):
            evaluated(folder / "after", questions, Guessing(0.5), samples=3,
                      data=str(folder / "rl.jsonl"), limit=None, seed=0, reward={})  # fmt: skip

    def own_pairs(name):
        return said("build-prefs", "--from-generations", folder / "after", "--overwrite", "--val-share", "0",
                    "--out", folder / "own.jsonl")  # fmt: skip

    def rows(name):
        return read_rl_questions(str(folder / name))

    # settings that were changed are told by the folder
    where = lambda name: [Path(name).name, "/after"]  # noqa: E731
    yield Target("compare", folder, files, compare, named=where)
    yield Target("resume", folder, files[:2], resume, (EvaluationError,), where)
    # where no pair is left to make, the answers are told
    told = lambda name: ["after", Path(name).name, "no pair can be made"]  # noqa: E731
    yield Target("own pairs", folder, [*files[:2], "rl.jsonl"], own_pairs, named=told)
    yield Target("rl rows", folder, ["rl.jsonl", "rl.parquet"], rows, (EvaluationError, PreferenceDataError))


def other_readers(folder):
    """The check of RL rows before Ray, questions out of a preference file, files trained on, a model's folder."""
    from omegaconf import OmegaConf

    from verl_aiops.data.errors import PreferenceDataError
    from verl_aiops.evaluation.errors import EvaluationError
    from verl_aiops.evaluation.on_policy.sampled import Sampled, check_not_seen
    from verl_aiops.evaluation.run.questions import read_pair_questions, read_rl_questions
    from verl_aiops.models.folders import ModelFolderError, find_model
    from verl_aiops.trainers.config import ConfigError
    from verl_aiops.trainers.rl.prompt_rows import check_rows
    from verl_aiops.trainers.triage.rows import RowRules

    source = simulator_source(Simulator(seed=2), 3)
    for name in ("rl.parquet", "rl.jsonl"):
        build_rl(source, folder / name, val_share=0)
    for name in ("prefs.parquet", "prefs.jsonl"):
        build_prefs(source, folder / name, val_share=0)
    build_sft(simulator_source(Simulator(seed=3), 3), folder / "sft.jsonl", val_share=0)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 8}))
    (folder / "model" / "model.safetensors").write_bytes(b"none")
    asked = Sampled(folder, read_rl_questions(str(folder / "rl.jsonl")), [], {})

    def checked(name):
        data = {"train_files": str(folder / name), "val_files": str(folder / name), "train_batch_size": 1}
        check_rows(OmegaConf.create({"data": data}), RowRules())

    users = (PreferenceDataError, EvaluationError, ConfigError, ValueError)
    yield Target("rl check", folder, ["rl.parquet", "rl.jsonl"], checked, users[:3])
    yield Target("questions", folder, ["prefs.parquet", "prefs.jsonl"],
                 lambda name: read_pair_questions(str(folder / name)) and None, users[:2])  # fmt: skip
    yield Target(
        "trained on",
        folder,
        ["sft.jsonl"],
        lambda name: check_not_seen(asked.file, asked.questions, folder / name),
        users[:3],
    )
    yield Target("model", folder, ["model/config.json"],
                 lambda name: find_model(str(folder / "model")).fingerprint() and None, (ModelFolderError,),
                 lambda name: ["/model"])  # fmt: skip


def dumps(folder):
    from verl_aiops.rewards.aiops_mturn import compute_score

    questions = questions_of(4)
    (folder / "validation").mkdir()
    for step in (0, 10):
        rows = []
        for at, question in enumerate(questions):
            rounds = ["It is slow.", right_answer(question) if at < 2 + step else "no"]
            score = compute_score("aiops_mturn", rounds[-1], question.ground_truth, {"turns": rounds})
            rows.append({"input": question.messages[0]["content"], "output": rounds[-1], "step": step,
                         "gts": json.dumps(question.ground_truth), "uid": f"{at}_0_0",
                         "round_1": rounds[0], "round_2": rounds[1], **score})  # fmt: skip
        _write_lines(folder / "validation" / f"{step}.jsonl", rows)
    spec = f"first={folder / 'validation' / '0.jsonl'}", f"last={folder / 'validation'}"

    def run(name):
        return said("compare", *spec, "--no-plots", "--overwrite", "--out", folder / "out")

    # pairs by prompt: what another prompt leaves is told by the labels
    yield Target("dumps", folder, ["validation/10.jsonl"], run, named=lambda name: ["10.jsonl", "last"])


def metrics(folder, plots):
    from verl_aiops.cli.main import main
    from verl_aiops.evaluation import training_curves as curves

    rows = [{"step": at, "data": {"reward/score": 0.1 * at, "actor/loss": 1.0 / (at + 1), "timing_s/step": 2.0,
                                  "val-aux/x/score/mean@1": 0.3}} for at in range(5)]  # fmt: skip
    _write_lines(folder / "metrics.jsonl", rows)

    def read(name):
        runs = curves.read_metrics(folder / name)
        for x in ("step", "minutes"):
            for key in ("reward/score", "actor/loss"):
                curves._smoothed(curves._series(runs, key, x)[1], 2)

    def draw(name):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main(["curves", str(folder / name), "--keys", "reward/score", "--smooth", "2", "--x", "minutes",
                                "--out", str(folder / "curves.png")])  # fmt: skip
        assert code or "error:" not in errors.getvalue(), (code, errors.getvalue())
        return errors.getvalue() or None

    # a metric that nobody logged any more is told by its name
    yield Target("metrics", folder, ["metrics.jsonl"], read, (ValueError,))
    if plots:
        yield Target("curves", folder, ["metrics.jsonl"], draw, named=lambda name: [name, "reward/score"])


def replies(folder):
    """What servers send, and small files beside a model."""
    from verl_aiops.evaluation.run import openai_backend as endpoint
    from verl_aiops.http import HttpFault
    from verl_aiops.inputs.json_text import JsonFault, read_json
    from verl_aiops.rewards.model import client as rm_client
    from verl_aiops.rewards.model.transform import read_stats
    from verl_aiops.rollout.hf import scoring_api

    (folder / "probs.json").write_text(json.dumps({"data": [{"index": 0, "probs": [0.25]}]}))
    (folder / "chat.json").write_text(json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}],
                                                  "usage": {"completion_tokens": 3}}))  # fmt: skip
    (folder / "asked.json").write_text(json.dumps({"model": "m", "input": ["a", [1, 2]]}))
    (folder / "reward_stats.json").write_text(json.dumps({"reward_mean": 0.5, "reward_std": 2.0, "pairs": 10}))
    client = rm_client.RewardModelClient("h:1", "hf", "m", timeout_s=1, deadline_s=1, attempts=1, backoff_s=1,
                                         concurrency=1)  # fmt: skip

    def asked(name):
        scoring_api._inputs(scoring_api._payload((folder / name).read_bytes(), set()))

    anything = lambda name: [""]  # noqa: E731
    for what, name, read in (("reward model", "probs.json", client._read), ("endpoint", "chat.json", endpoint._read)):
        yield Target(what, folder, [name], lambda name, read=read: read(read_json((folder / name).read_bytes()), ""),
                     (HttpFault, JsonFault), anything)  # fmt: skip
    yield Target("scoring server", folder, ["asked.json"], asked, (scoring_api.RefusedError,), anything)
    yield Target("statistics", folder, ["reward_stats.json"], lambda name: read_stats(str(folder)), (ValueError,))


def targets(folder, tokenizer, plots):
    def place(name):
        (folder / name).mkdir(parents=True)
        return folder / name

    yield from pairs(place("pairs"), copy.deepcopy(tokenizer))
    yield from incidents(place("incidents"))
    yield from verdicts(place("verdicts"))
    yield from imports(place("imports"))
    yield from evaluations(place("evaluations"))
    yield from other_readers(place("others"))
    yield from dumps(place("dumps"))
    yield from metrics(place("metrics"), plots)
    yield from replies(place("replies"))
