"""`eval --rm`: how a reward model ranks held-out answers, by a folder and by a server, and what its choice brings."""

import json
import math

import numpy as np
import pytest
import torch
from eval_harness import listening_app
from tiny import make_tiny_classifier

from verl_aiops.cli.main import main
from verl_aiops.evaluation.reward_model.measures import best_of_n, margins_of, ranking

PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Which service failed in case {at}?"}],
        "chosen": "the database" + " again" * (at % 4),
        "rejected": "the cache" + " slowly" * (at % 3),
        "group": f"fault {at // 2}",
    }
    for at in range(8)
]
WORDS = ("no", "maybe", "yes")
GROUPS = [
    {
        "prompt": f"log {at}",
        "completions": [
            {"content": f"{word} {at}", "score": score} for score, word in enumerate(("no", "maybe", "yes"))
        ],
    }
    for at in range(4)
]


@pytest.fixture(scope="module")
def reward_model(tiny_model_dir, tmp_path_factory):
    """A tiny classifier with a head drawn from a seed, as `train-rm` leaves it."""
    return make_tiny_classifier(tmp_path_factory.mktemp("rm"), tiny_model_dir, trunk=True, seed=3)


def by_hand(folder, prompt, answer):
    """The score of a conversation's last token by transformers alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None  # the last token is scored, whatever it is
    prompt = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.item()


def test_scores_are_those_of_a_plain_forward_pass_and_so_are_the_figures(reward_model, write_rows, tmp_path, capsys):
    files = [write_rows(PAIRS), write_rows(GROUPS, "groups.jsonl")]
    out = tmp_path / "out"
    assert main(["eval", "--rm", str(reward_model), "--pairs", *files, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "ranked.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and rows[0]["group"] == "fault 0" and rows[0]["ranks"] == [1.0, 2.0]
    expected = [by_hand(reward_model, PAIRS[0]["prompt"], PAIRS[0][side]) for side in ("chosen", "rejected")]
    assert rows[0]["scores"] == pytest.approx(expected, abs=1e-4)
    best_first = [by_hand(reward_model, "log 1", f"{word} 1") for word in ("yes", "maybe", "no")]
    assert rows[9]["scores"] == pytest.approx(best_first, abs=1e-4) and rows[9]["ranks"] == [1.0, 2.0, 3.0]
    told = json.loads((out / "summary.json").read_text())["ranking"]
    margins = [margin for row in rows for margin in margins_of(row["ranks"], row["scores"])]
    assert told["accuracy"]["value"] == pytest.approx(np.mean([margin > 0 for margin in margins]))
    assert told["accuracy"]["n"] == 8 + 3 * 4 and told["accuracy"]["groups"] == 4 + 4
    assert told["calibration"]["log_loss"] == pytest.approx(np.mean([math.log1p(math.exp(-one)) for one in margins]))
    assert (out / "calibration.svg").is_file() and "pairs ranked right" in capsys.readouterr().out
    assert main(["eval", "--rm", str(reward_model), "--pairs", *files, "--out", str(out)]) == 2
    assert "holds an earlier evaluation" in capsys.readouterr().err


@pytest.fixture
def served(reward_model):
    """The address of a server of the reward model."""
    from verl_aiops.rollout.hf.score_server import application

    with listening_app(application(str(reward_model))) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("server", ["vllm", "sglang", "hf"])
def test_a_server_gives_the_same_as_the_folder(reward_model, served, write_rows, tmp_path, server):
    file = write_rows(PAIRS)
    assert main(["eval", "--rm", str(reward_model), "--pairs", file, "--out", str(tmp_path / "folder")]) == 0
    asked = ["--rm", served, "--model", str(reward_model), "--rm-server", server]
    assert main(["eval", *asked, "--pairs", file, "--out", str(tmp_path / "url")]) == 0
    one, other = (
        [json.loads(line)["scores"] for line in (tmp_path / name / "ranked.jsonl").read_text().splitlines()]
        for name in ("folder", "url")
    )
    assert np.array(one) == pytest.approx(np.array(other), abs=1e-5)


def test_what_the_choice_among_answers_brings(tiny_model_dir, reward_model, tmp_path, capsys):
    build = ["build-rl", "--out", str(tmp_path / "rl.jsonl"), "--num-incidents", "60", "--max-chars", "300"]
    assert main([*build, "--max-candidates", "3", "--val-share", "0.5"]) == 0
    ask = ["eval", "--model", str(tiny_model_dir), "--data", str(tmp_path / "rl.val.jsonl"), "--limit", "6"]
    ask += ["--n", "4", "--temperature", "1", "--round-tokens", "8,8", "--out", str(tmp_path / "n4")]
    assert main(ask) == 0
    lines = (tmp_path / "n4" / "generations.jsonl").read_text().splitlines()
    # a rule that likes one answer of each question
    changed = [json.loads(line) for line in lines]
    for line in changed:
        line["score"]["score"] = float(line["sample"] == 2)
    (tmp_path / "n4" / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    capsys.readouterr()
    out = tmp_path / "out"
    asked = ["--rm", str(reward_model), "--answers", str(tmp_path / "n4"), "--out", str(out)]
    assert main(["eval", *asked]) == 0
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all(row["rule"] == [0.0, 0.0, 1.0, 0.0] for row in rows)
    told = json.loads((out / "summary.json").read_text())["best_of_n"]
    assert list(told) == ["1", "2", "4"] and told["1"]["rm"]["value"] == told["4"]["chance"]["value"] == 0.25
    picked = [row["scores"].index(max(row["scores"])) == 2 for row in rows]
    assert told["4"]["rm"]["value"] == pytest.approx(np.mean(picked)) and told["4"]["rule"]["value"] == 1.0
    assert "gain over chance" in capsys.readouterr().out and (out / "best_of_n.svg").is_file()
    changed = [line for line in changed if line["sample"] == 0]
    (tmp_path / "n4" / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    assert main(["eval", *asked, "--overwrite"]) == 2 and "one answer to a question" in capsys.readouterr().err


def test_the_curve_over_n_is_exact_over_all_draws():
    questions = [{"rm": [3.0, 2.0, 1.0], "rule": [0.0, 0.5, 1.0], "group": at} for at in range(9)]
    told = best_of_n(questions, 0)
    # of two drawn: 3 wins twice of three times, else 2
    assert told[2]["rm"]["value"] == pytest.approx((0.0 * 2 + 0.5) / 3)
    assert told[2]["rule"]["value"] == pytest.approx((1.0 * 2 + 0.5) / 3)
    assert told[3]["rm"]["value"] == 0.0 and told[3]["gain"]["value"] == pytest.approx(-0.5)
    assert told[1]["gain"]["value"] == pytest.approx(0.0)


def test_ties_are_half_right_and_intervals_are_over_groups():
    examples = [{"ranks": [1, 2], "scores": [1.0, 1.0 - (at % 2)], "group": at // 10} for at in range(100)]
    told = ranking(examples, 0)
    assert told["accuracy"]["value"] == pytest.approx(0.75) and told["accuracy"]["groups"] == 10
    alone = ranking([{**one, "group": at} for at, one in enumerate(examples)], 0)["accuracy"]
    assert told["accuracy"]["low"] is not None and alone["groups"] == 100
    three = ranking([{"ranks": [1, 1, 3], "scores": [2.0, 1.0, 2.0], "group": at} for at in range(9)], 0)
    assert three["best"]["value"] == 0.5 and three["accuracy"]["value"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rm", "RM"], "give --pairs FILE"),
        (["--rm", "RM", "--pairs", "P", "--model", "M"], "--model goes with --rm http://HOST:PORT"),
        (["--rm", "RM", "--pairs", "P", "--data", "D"], "--data says what --answers were asked"),
        (["--rm", "RM", "--pairs", "P", "--n", "4"], "--n: has no meaning with --rm"),
        (["--rm", "http://h:1", "--pairs", "P"], "give --model DIR"),
        (["--rm", "https://h/x", "--pairs", "P", "--model", "M"], "expected a folder, or http://HOST:PORT"),
        (["--rm", "nothing/there", "--pairs", "P"], "no such folder"),
        (["--model", "M", "--data", "D", "--pairs", "P"], "--pairs goes with --rm"),
        (["--data", "D"], "--model: give a model's folder"),
    ],
)
def test_what_does_not_go_together_is_told(reward_model, tmp_path, capsys, given, said):
    given = [str(reward_model) if one == "RM" else one for one in given]
    assert main(["eval", *given, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_server_that_is_gone_is_told_and_nothing_is_written(reward_model, write_rows, tmp_path, capsys):
    asked = ["--rm", "http://127.0.0.1:9", "--model", str(reward_model), "--attempts", "1"]
    assert main(["eval", *asked, "--pairs", write_rows(PAIRS), "--out", str(tmp_path / "out")]) == 2
    assert "no score from the reward model at http://127.0.0.1:9/classify" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
