"""How a model ranks pairs: its log-probs are those of a plain forward pass, and the table follows from them."""

import json

import numpy as np
import pytest
import torch
from tiny import make_tiny_model

from verl_aiops.cli.main import main
from verl_aiops.evaluation.pairs.scoring import PairScores, _batches
from verl_aiops.evaluation.pairs.summary import CHANGE, summarise, table_of_pairs

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Which service failed in case {at}?"}],
        "chosen": "the database" + " again" * (at % 4),
        "rejected": "the cache" + " slowly" * (at % 3),
    }
    for at in range(7)
]


def by_hand(folder, prompt, answer):
    """The answer's log-prob by transformers alone: the template's text, one row, log-softmax."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
    assert whole.startswith(start)
    ids, first = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (whole, start))
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logps[at - 1, ids[at]]) for at in range(len(first), len(ids))), len(ids) - len(first)


def test_log_probs_are_those_of_a_plain_forward_pass(tiny_model_dir, write_rows, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--data", write_rows(ROWS), "--out", str(out), "--device", "cpu", "--batch-tokens", "300"]
    assert main(["eval-pairs", "--model", str(tiny_model_dir), *options]) == 0
    rows = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"pairs.jsonl:{at + 1}" for at in range(len(ROWS))]
    for row, pair in zip(rows, ROWS, strict=True):
        for place, side in enumerate(("chosen", "rejected")):
            logp, tokens = by_hand(tiny_model_dir, pair["prompt"], pair[side])
            assert row["model"][side] == pytest.approx(logp, abs=1e-4) and row["tokens"][place] == tokens
    summary = json.loads((out / "summary.json").read_text())
    right = [row["model"]["chosen"] > row["model"]["rejected"] for row in rows]
    assert summary["metrics"]["model"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    assert "pairs ranked right" in capsys.readouterr().out and not (out / ".merged").exists()
    assert main(["eval-pairs", "--model", str(tiny_model_dir), *options]) == 2
    assert "holds an earlier evaluation" in capsys.readouterr().err


def test_before_and_after(tiny_model_dir, write_rows, tmp_path):
    other = make_tiny_model(tmp_path / "other", seed=5)
    rows = [{"question": row["prompt"][0]["content"], "good": row["chosen"], "bad": row["rejected"]} for row in ROWS]
    options = ["--data", write_rows(rows, "p.parquet"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    options += ["--columns", "prompt=question,chosen=good,rejected=bad", "--text-pairs", "chat"]
    assert main(["eval-pairs", "--before", str(tiny_model_dir), "--model", str(other), *options]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["metrics"]) == ["before", "after", "change"] and "in the chat template" in summary["read"]
    metrics = summary["metrics"]
    for name in ("accuracy", "margin", "logp_chosen"):
        assert metrics[CHANGE][name]["value"] == pytest.approx(
            metrics["after"][name]["value"] - metrics["before"][name]["value"]
        )
    first = json.loads((tmp_path / "out" / "pairs.jsonl").read_text().splitlines()[0])
    assert first["before"]["chosen"] == pytest.approx(
        by_hand(tiny_model_dir, ROWS[0]["prompt"], ROWS[0]["chosen"])[0], abs=1e-4
    )
    assert first["before"]["chosen"] != pytest.approx(first["after"]["chosen"], abs=1e-3)
    picture = (tmp_path / "out" / "pairs.svg").read_text() if (tmp_path / "out" / "pairs.svg").exists() else None
    assert picture is None or "after" in picture and "change of chosen" in picture


@pytest.mark.parametrize(
    "options, said",
    [
        (["--model", "nowhere"], "--model nowhere: no such folder"),
        (["--before", "nowhere"], "--before nowhere: no such folder"),
        (["--columns", "promt=x"], "no such name: 'promt'"),
        (["--limit", "0"], "--limit 0: expected"),
        (["--max-response-length", "2"], "set --truncation drop"),
    ],
)
def test_what_cannot_be_is_refused_first(tiny_model_dir, write_rows, tmp_path, capsys, options, said):
    out = tmp_path / "out"
    line = ["eval-pairs", "--model", str(tiny_model_dir), "--data", write_rows(ROWS), "--out", str(out)]
    assert main([*line, *options]) == 2
    assert said in capsys.readouterr().err and not (out / "summary.json").exists()


# ---- the numbers


def scores(chosen, rejected):
    return PairScores(np.array(chosen, float), np.array(rejected, float))


def test_a_pair_is_right_where_chosen_leads_and_a_tie_is_not():
    found = summarise({"model": scores([-1, -4, -2], [-2, -3, -2])}, np.array([[1, 1], [4, 1], [1, 2]]), [0, 1, 2], 0)
    assert found["model"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["model"]["accuracy_per_token"]["value"] == pytest.approx(2 / 3)  # -1 > -2, -1 > -3, -2 < -1
    assert found["model"]["margin"]["value"] == pytest.approx(0)
    assert found["model"]["accuracy"]["low"] is None  # three groups say nothing of the others


def test_pairs_of_one_group_are_no_independent_ones():
    rng = np.random.default_rng(0)
    per_group = rng.normal(0, 5, 20)
    chosen = np.repeat(per_group, 10)
    tokens = np.ones((200, 2))
    together = summarise({"model": scores(chosen, np.zeros(200))}, tokens, np.repeat(np.arange(20), 10).tolist(), 0)
    alone = summarise({"model": scores(chosen, np.zeros(200))}, tokens, list(range(200)), 0)
    for metric in ("accuracy", "margin"):
        wide, narrow = (found["model"][metric]["high"] - found["model"][metric]["low"] for found in (together, alone))
        assert wide > 2 * narrow and together["model"][metric]["groups"] == 20


def test_the_change_is_paired_and_dpos_accuracy_looks_at_it_alone():
    before = scores(np.arange(-30, -10), np.arange(-30, -10) + 5)
    after = scores(before.chosen + 1, before.rejected - 1)
    found = summarise({"before": before, "after": after}, np.ones((20, 2)), list(range(20)), 0)
    assert found["after"]["accuracy"]["value"] == 0 and found[CHANGE]["moved"]["value"] == 1
    assert found[CHANGE]["margin"]["value"] == pytest.approx(2)
    assert found[CHANGE]["margin"]["high"] - found[CHANGE]["margin"]["low"] < 1e-6  # the same for every pair
    table = table_of_pairs(found).splitlines()
    assert table[0].split() == ["before", "after", "change"]
    assert "moved the right way (DPO's accuracy)" in table[-1] and "100.0 %" in table[-1]
    assert "+0.0 points" in table[1]


def test_batches_hold_each_pair_once_and_keep_to_their_tokens():
    lengths = np.random.default_rng(1).integers(1, 60, (50, 3))
    lengths[7] = 400  # alone, whatever the limit
    batches = list(_batches(lengths, 500))
    assert sorted(at for batch in batches for at in batch) == list(range(50)) and len(batches) > 5
    for batch in batches:
        longest = max(int(lengths[at, 0] + lengths[at, 1:].max()) for at in batch)
        assert len(batch) == 1 or 2 * len(batch) * longest <= 500
