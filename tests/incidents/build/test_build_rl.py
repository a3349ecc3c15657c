"""RL files: verl's columns, whole evidence whatever the budget, the split of the pairs, and verl's own reading."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_rows import rows_in

from verl_aiops.incidents import (
    RL_COLUMNS,
    Incident,
    IncidentError,
    OutputExistsError,
    PromptOptions,
    Simulator,
    build_case,
    build_prefs,
    build_rl,
    check_rl_file,
    file_source,
    incident_text,
    neutralise_incident,
    row_writers,
    simulator_source,
    simulator_taxonomy,
    trim_incident,
)
from verl_aiops.rewards.aiops_mturn import compute_score

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
BUDGETS = (100, 150, 200, 300, 450, 700, 1000, 1500)


def both_sides(path: Path) -> list[dict]:
    return rows_in(path) + rows_in(path.with_name(f"{path.stem}.val{path.suffix}"))


def mixed(count: int = 300, seed: int = 0):
    return simulator_source(Simulator(seed=seed, lang="mix", difficulty="mix"), count)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """2,400 rows, more than two row groups, of a mixed simulation."""
    out = tmp_path_factory.mktemp("rl") / "rl.parquet"
    return out, build_rl(mixed(2400), out, val_share=0.1, val_trim="evidence")


def test_parquet_types(built):
    out, _ = built
    names = ("id", "group", "lang", "source", "difficulty", "part", "answerable", "wording")
    info = [("index", pa.int64()), *((name, pa.string()) for name in names)]
    lists = ("rounds", "answers")
    expected = pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", MESSAGES),
            ("agent_name", pa.string()),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            (
                "extra_info",
                pa.struct([*info, ("incident_text", pa.string()), *((k, pa.list_(pa.string())) for k in lists)]),
            ),
        ]
    )
    assert pq.read_schema(out).equals(expected)
    assert pq.ParquetFile(out).num_row_groups == 3


def test_rows(built):
    out, summary = built
    for path in (out, out.with_name("rl.val.parquet")):
        for number, row in enumerate(rows_in(path)):
            info, truth = row["extra_info"], json.loads(row["reward_model"]["ground_truth"])
            assert row["data_source"] == row["agent_name"] == "aiops_mturn" and row["ability"] == "aiops_triage"
            assert row["reward_model"]["style"] == "rule" and info["index"] == number
            assert [message["role"] for message in row["prompt"]] == ["user"]
            assert f"<incident>\n{info['incident_text']}\n</incident>" in row["prompt"][0]["content"]
            (second,) = info["rounds"]
            for name in ("service", "incident_type"):
                assert truth[name] in truth["candidates"][name]
                assert all(candidate in second for candidate in truth["candidates"][name])
            assert set(truth) == {"service", "incident_type", "evidence", "aliases", "candidates"}
            assert truth["evidence"] and all(text in info["incident_text"] for text in truth["evidence"])
            assert ("第 2 轮" in second) == (info["lang"] == "zh")
    assert {row["extra_info"]["lang"] for row in rows_in(out)} == {"en", "zh"}
    longest = max(len(row["prompt"][0]["content"]) for row in rows_in(out))
    assert f"at most {longest:,}" in str(summary) and "exceed the budget" not in str(summary)


def test_the_datasets_library_reads_the_same_types(built, tmp_path):
    datasets = pytest.importorskip("datasets")
    out, _ = built
    loaded = datasets.load_dataset("parquet", data_files=str(out), cache_dir=str(tmp_path))["train"]
    assert loaded.features.arrow_schema.equals(pq.read_schema(out))
    assert loaded[:20] == pa.Table.from_pylist(rows_in(out)[:20]).to_pydict()


def test_the_same_split_prompt_and_truth_as_the_pairs(built, tmp_path):
    out, _ = built
    build_prefs(mixed(2400), tmp_path / "rl.parquet", val_share=0.1, val_trim="evidence")
    for name in ("rl.parquet", "rl.val.parquet"):
        pairs = {row["id"].rpartition("#")[0]: row for row in rows_in(tmp_path / name)}
        prompts = {row["extra_info"]["id"]: row for row in rows_in(out.with_name(name))}
        assert set(pairs) == set(prompts)
        for key, row in prompts.items():
            pair, info = pairs[key], row["extra_info"]
            assert pair["group"] == info["group"]
            assert row["reward_model"]["ground_truth"] == pair["ground_truth"]
            assert row["prompt"] == pair["prompt"][:1]
            assert info["rounds"] == [pair["prompt"][2]["content"]]
            assert (
                json.loads(info["answers"][1]) == json.loads(pair["chosen"][0]["content"]) and '"' in info["answers"][0]
            )


def test_the_same_split_of_collected_incidents(collected, tmp_path):
    source = file_source(collected.path)
    build_prefs(source, tmp_path / "p.parquet", val_share=0.2, seed=3)
    build_rl(source, tmp_path / "r.parquet", val_share=0.2, seed=3, prompts=PromptOptions(budget=400))
    for suffix in (".parquet", ".val.parquet"):
        pairs = {row["id"].rpartition("#")[0] for row in rows_in(tmp_path / f"p{suffix}")}
        assert pairs == {row["extra_info"]["id"] for row in rows_in(tmp_path / f"r{suffix}")}


@pytest.mark.parametrize("name", ["d.parquet", "d.jsonl"])
def test_direct_style_has_no_later_rounds(tmp_path, name):
    build_rl(mixed(60), tmp_path / name, prompts=PromptOptions(style="direct", max_candidates=4))
    for row in both_sides(tmp_path / name):
        assert row["extra_info"]["rounds"] == [] and len(row["extra_info"]["answers"]) == 1
        candidates = json.loads(row["reward_model"]["ground_truth"])["candidates"]
        assert all(name in row["prompt"][0]["content"] for names in candidates.values() for name in names)
    if name == "d.parquet":
        assert pq.read_schema(tmp_path / name).field("extra_info").type.field("rounds").type == pa.list_(pa.string())


def test_without_candidates_only_the_ground_truth_has_them(tmp_path):
    source = mixed(60)
    build_rl(source, tmp_path / "r.jsonl", prompts=PromptOptions(show_candidates=False))
    for row in both_sides(tmp_path / "r.jsonl"):
        (second,) = row["extra_info"]["rounds"]
        assert second.endswith('{"service": "...", "incident_type": "..."}')
        system = source.taxonomy.systems[row["extra_info"]["source"]]
        candidates = json.loads(row["reward_model"]["ground_truth"])["candidates"]
        assert set(candidates["incident_type"]) == set(system.incident_types)
        assert len(candidates["service"]) > 2


def check_rewards(built: list[dict], source) -> None:
    options = PromptOptions(max_quotes=9, whole_evidence=True)
    cases = {
        incident.id: build_case(incident, source.taxonomy.system_of(incident), options) for incident in source.stream()
    }
    assert len(built) == len(cases)
    for row in built:
        case, truth = cases[row["extra_info"]["id"]], row["reward_model"]["ground_truth"]

        def score(*turns, row=row, truth=truth):
            return compute_score(row["data_source"], "", truth, {**row["extra_info"], "turns": list(turns)})["score"]

        # Without known evidence nothing says that a quotation is the right one, so half of its share is paid.
        assert score(case.analysis, case.answer) == pytest.approx(1.0 if case.incident.evidence else 0.925)
        assert score("It reads like one fault.", case.answer) == pytest.approx(0.85)


def test_the_reference_answer_earns_the_full_reward(built):
    out, _ = built
    check_rewards(both_sides(out), mixed(2400))


def test_the_reference_answer_of_collected_incidents_earns_it_too(collected, tmp_path):
    source = file_source(collected.path)
    build_rl(source, tmp_path / "r.parquet", val_trim="evidence")
    check_rewards(both_sides(tmp_path / "r.parquet"), source)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_the_same_arguments_give_the_same_bytes(tmp_path, name):
    prompts = PromptOptions(budget=400)
    files = []
    for folder, seed in (("one", 5), ("two", 5), ("three", 6)):
        out = tmp_path / folder / name
        build_rl(mixed(120, seed=1), out, seed=seed, prompts=prompts)
        files.append(out.read_bytes() + out.with_name(f"a.val{out.suffix}").read_bytes())
    assert files[0] == files[1] != files[2]


def test_jsonl_and_parquet_hold_the_same(tmp_path):
    for name in ("a.parquet", "a.jsonl"):
        build_rl(mixed(50), tmp_path / name)
    assert both_sides(tmp_path / "a.parquet") == both_sides(tmp_path / "a.jsonl")


def test_files_are_protected(tmp_path):
    out, val = tmp_path / "r.parquet", tmp_path / "r.val.parquet"
    val.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"r\.val\.parquet: is already there; pass --overwrite"):
        build_rl(mixed(20), out)
    assert val.read_text() == "mine" and not out.exists()
    summary = build_rl(mixed(40), out, overwrite=True, val_share=0.3)
    assert summary.written == [str(out), str(val)] and len(both_sides(out)) == 40


# --- the budget -------------------------------------------------------------------------------------------------------


@cache
def simulated(lang: str) -> list[Incident]:
    return [
        incident
        for difficulty in ("easy", "hard")
        for incident in Simulator(seed=11, lang=lang, difficulty=difficulty).stream(40)
    ]


def check_evidence(incident: Incident, system, budget: int, style: str) -> None:
    options = PromptOptions(style=style, budget=budget, whole_evidence=True)
    case = build_case(incident, system, options)
    evidence = case.ground_truth["evidence"]
    assert evidence == list(neutralise_incident(incident).evidence)
    assert all(text in case.text for text in evidence)
    assert case.text in case.opening[0]["content"]
    assert case.trimmed.over_budget == (len(case.text) > budget)
    assert case.trimmed.evidence_left_out == case.trimmed.evidence_shortened == 0


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_simulated_evidence_stays_whole(lang, budget):
    for incident in simulated(lang):
        system = simulator_taxonomy().system_of(incident)
        for style in ("two_round", "direct"):
            check_evidence(incident, system, budget, style)


@pytest.mark.parametrize("budget", BUDGETS)
def test_collected_evidence_stays_whole(collected, tmp_path, budget):
    source = file_source(collected.path)
    for incident in source.stream():
        check_evidence(incident, source.taxonomy.system_of(incident), budget, "two_round")
    out = tmp_path / "r.parquet"
    summary = build_rl(source, out, prompts=PromptOptions(budget=budget), val_trim="evidence")
    truths = {incident.id: neutralise_incident(incident).evidence for incident in source.stream()}
    over = 0
    built = both_sides(out)
    for row in built:
        info = row["extra_info"]
        evidence = json.loads(row["reward_model"]["ground_truth"])["evidence"]
        assert tuple(evidence) == truths[info["id"]]
        assert all(text in info["incident_text"] for text in evidence)
        assert info["incident_text"] in row["prompt"][0]["content"]
        over += len(info["incident_text"]) > budget
    assert len(built) == collected.count
    assert over == sum(side.over_budget for side in summary.sides.values())
    assert ("exceed the budget, since their evidence stays whole" in str(summary)) == (over > 0)


WORDS = st.text(st.sampled_from("ab <|>\n\r[]/INST\u200b…"), min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=300, deadline=None)
@given(
    symptom=WORDS,
    logs=st.lists(WORDS, min_size=1, max_size=12),
    trace=st.none() | WORDS,
    picks=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 60)), max_size=4),
    budget=st.integers(20, 400),
    lang=st.sampled_from(["en", "zh"]),
)
def test_any_part_of_any_text_stays_whole(symptom, logs, trace, picks, budget, lang):
    sections = [text for text in (symptom, "\n".join(logs), trace) if text]
    evidence = []
    for section, start, length in picks:
        text = sections[section % len(sections)]
        start %= len(text)
        evidence.append(text[start : start + length])
    evidence = tuple(dict.fromkeys(text for text in evidence if text.strip()))
    incident = Incident("x", "s", "db", "oom", symptom, tuple(logs), trace, lang, evidence)
    trimmed = trim_incident(incident, budget, whole_evidence=True)
    text = incident_text(trimmed.incident)
    assert trimmed.incident.evidence == neutralise_incident(incident).evidence
    assert all(item in text for item in trimmed.incident.evidence)
    assert trimmed.over_budget == (len(text) > budget)
    assert trimmed.evidence_left_out == trimmed.evidence_shortened == 0


def test_what_gives_way_before_the_budget_does():
    line = "x" * 500 + " disk full " + "y" * 500
    incident = Incident("x", "s", "db", "oom", "Orders fail. " * 20, ("quiet", line, "quiet"), evidence=("disk full",))
    trimmed = trim_incident(incident, 200, whole_evidence=True)
    assert not trimmed.over_budget and "…disk full…" in trimmed.incident.logs
    assert len(trimmed.incident.symptom) > 80
    short = trim_incident(incident, 90, whole_evidence=True)
    assert not short.over_budget and len(short.incident.symptom) < 45
    least = trim_incident(incident, 30, whole_evidence=True)
    assert least.over_budget and "…disk full…" in least.incident.logs


def test_evidence_in_the_symptom_is_not_cut_with_it():
    symptom = "word " * 60 + "checkout answers 503" + " word" * 60
    incident = Incident("x", "s", "db", "oom", symptom, ("a log line",) * 30, evidence=("checkout answers 503",))
    trimmed = trim_incident(incident, 200, whole_evidence=True)
    assert trimmed.incident.symptom.endswith("answers 503…") and trimmed.over_budget


def test_other_builders_keep_to_the_budget(tmp_path):
    build_prefs(mixed(40), tmp_path / "p.parquet", prompts=PromptOptions(budget=200))
    assert all(len(row["incident_text"]) <= 200 for row in both_sides(tmp_path / "p.parquet"))


# --- reading back -----------------------------------------------------------------------------------------------------


def good_rows(tmp_path: Path) -> list[dict]:
    build_rl(mixed(20), tmp_path / "good.jsonl", val_share=0)
    return rows_in(tmp_path / "good.jsonl")


def test_what_was_written_is_read_back(tmp_path):
    for name, how in (("a.parquet", "by pyarrow"), ("a.jsonl", "as JSON")):
        build_rl(mixed(20), tmp_path / name, val_share=0)
        assert check_rl_file(tmp_path / name) == f"20 rows read back {how}, structure and evidence are right"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(agent_name="other"), "agent_name: expected 'aiops_mturn', found 'other'"),
        (lambda row: row.update(ability=""), "ability: expected string, not empty, found ''"),
        (lambda row: row.update(prompt=[]), "prompt: expected at least one message, found"),
        (lambda row: row["prompt"][0].update(content=None), r"prompt\[0\]\.content: expected string"),
        (lambda row: row["prompt"][0].update(role="assistant"), "prompt: expected 'user', found 'assistant'"),
        (lambda row: row["prompt"][0].update(content="hello"), "incident_text: expected a part of the prompt"),
        (lambda row: row["extra_info"].update(index=9), "extra_info.index: expected 3, found '9'"),
        (lambda row: row["extra_info"].pop("rounds"), "extra_info: expected the keys index, id, group"),
        (lambda row: row["extra_info"].update(rounds=[1]), "extra_info.rounds: expected strings"),
        (lambda row: row["reward_model"].update(style="model"), "reward_model.style: expected 'rule'"),
        (lambda row: row["reward_model"].update(ground_truth="db"), "expected JSON text with service, incident_type"),
        (lambda row: row["reward_model"].update(ground_truth='{"service": "a"}'), "expected JSON text with service"),
        (
            lambda row: row["reward_model"].update(
                ground_truth='{"service": "a", "incident_type": "b", "evidence": ["nowhere"]}'
            ),
            "expected evidence that occurs in extra_info.incident_text, found 'nowhere'",
        ),
    ],
)
def test_a_faulty_row_is_named(tmp_path, change, message):
    faulty = good_rows(tmp_path)
    change(faulty[3])
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in faulty), encoding="utf-8")
    with pytest.raises(
        IncidentError, match=rf"bad\.jsonl, row 3 \(counting from 0\): .*{message}.*; build the file again"
    ):
        check_rl_file(path)


def test_faulty_files_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("{broken\n")
    with pytest.raises(IncidentError, match=r"bad\.jsonl, row 0 .*: not JSON"):
        check_rl_file(path)
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"no parquet at all")
    with pytest.raises(IncidentError, match=r"bad\.parquet: cannot be read back"):
        check_rl_file(path)
    with row_writers([path], {**RL_COLUMNS, "extra_info": {"index": "int"}}, overwrite=True) as (writer,):
        writer.write({**good_rows(tmp_path)[0], "extra_info": {"index": 0}})
    with pytest.raises(IncidentError, match=r"found .*extra_info: struct<index: int64>"):
        check_rl_file(path)


# --- verl's own reading -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory, _shared_tokenizer):
    folder = tmp_path_factory.mktemp("tokenizer")
    _shared_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("style", ["two_round", "direct"])
@pytest.mark.parametrize("name", ["r.parquet", "r.jsonl"])
def test_verl_reads_every_row_as_written(tmp_path, tokenizer_dir, name, style):
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    from verl_aiops.trainers.rl.data_check import VerlCheck

    out = tmp_path / name
    summary = build_rl(mixed(60), out, prompts=PromptOptions(style=style))
    check = VerlCheck(tokenizer_dir, 4000)
    reports = list(check.reports(summary.written))
    assert [report.rows for report in reports] == [side.rows for side in summary.sides.values()]
    assert all(report.too_long == 0 and report.mean_tokens < report.longest <= 4000 for report in reports)
    assert "rows loaded by verl's RLHFDataset; prompts of" in str(reports[0])

    config = {"max_prompt_length": 4000, "filter_overlong_prompts": False, "cache_dir": str(tmp_path)}
    loaded = RLHFDataset(str(out), check.tokenizer, OmegaConf.create(config))
    expected = rows_in(out)
    assert len(loaded) == len(expected)
    batch = collate_fn([loaded[number] for number in range(len(loaded))])
    lengths = []
    for number, row in enumerate(expected):
        assert batch["raw_prompt"][number] == row["prompt"] and batch["index"][number] == number
        for key, value in row.items():
            assert batch[key][number] == value
        text = check.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        lengths.append(len(check.tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert reports[0].longest == max(lengths)
    assert reports[0].mean_tokens == pytest.approx(sum(lengths) / len(lengths))


def test_rows_that_verl_would_drop_are_an_error_after_the_report(tmp_path, tokenizer_dir):
    from verl_aiops.trainers.rl.data_check import RlDataError, VerlCheck

    summary = build_rl(mixed(60), tmp_path / "r.parquet")
    all_of_it = list(VerlCheck(tokenizer_dir, 10_000).reports(summary.written))
    limit = all_of_it[0].longest - 1
    reports = []
    message = rf"r\.parquet: verl drops 1 of {all_of_it[0].rows} rows .*data\.max_prompt_length={limit + 1}, or build"
    with pytest.raises(RlDataError, match=message):
        for report in VerlCheck(tokenizer_dir, limit).reports(summary.written[:1]):
            reports.append(report)
    (report,) = reports
    assert (report.too_long, report.longest) == (1, limit + 1)


def test_a_row_that_verl_reads_otherwise_is_an_error(tmp_path, tokenizer_dir, monkeypatch):
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from verl_aiops.trainers.rl.data_check import RlDataError, VerlCheck

    summary = build_rl(mixed(20), tmp_path / "r.parquet", val_share=0)
    original = RLHFDataset.__getitem__

    def other(self, item):
        return {**original(self, item), "agent_name": "single_turn_agent"}

    monkeypatch.setattr(RLHFDataset, "__getitem__", other)
    with pytest.raises(RlDataError, match=r"row 0 .*: verl reads 'agent_name' as 'single_turn_agent', the file has"):
        list(VerlCheck(tokenizer_dir, 10_000).reports(summary.written))


def test_the_check_leaves_no_copy_of_the_data(tmp_path, tokenizer_dir):
    import datasets

    from verl_aiops.trainers.rl.data_check import VerlCheck

    before = datasets.config.HF_DATASETS_CACHE
    summary = build_rl(mixed(20), tmp_path / "only-here.parquet", val_share=0)
    list(VerlCheck(tokenizer_dir, 10_000).reports(summary.written))
    assert datasets.config.HF_DATASETS_CACHE == before
    assert [path.name for path in tmp_path.iterdir()] == ["only-here.parquet"]


def test_model_folders_that_cannot_count(tmp_path, _shared_tokenizer):
    import copy

    from verl_aiops.trainers.rl.data_check import RlDataError, VerlCheck

    with pytest.raises(RlDataError, match="none: no such folder; name one with a tokenizer"):
        VerlCheck(str(tmp_path / "none"))
    with pytest.raises(RlDataError, match="max prompt length: expected 1 or more, found 0"):
        VerlCheck(str(tmp_path), 0)
    with pytest.raises(RlDataError, match="its tokenizer cannot be loaded"):
        VerlCheck(str(tmp_path))
    plain = copy.deepcopy(_shared_tokenizer)
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(RlDataError, match="no chat template"):
        VerlCheck(str(tmp_path / "plain"))
    picky = copy.deepcopy(_shared_tokenizer)
    picky.chat_template = "{{ raise_exception('only two messages') }}"
    picky.save_pretrained(tmp_path / "picky")
    summary = build_rl(mixed(5), tmp_path / "r.parquet", val_share=0)
    with pytest.raises(RlDataError, match=r"row 0 .*: the chat template refuses the prompt \(only two messages\)"):
        list(VerlCheck(str(tmp_path / "picky")).reports(summary.written))
