"""A model's own answers as ranked groups and as yes and no."""

import json

import pyarrow.parquet as pq
import pytest
from test_own_pairs import asked, other, right, verdict  # noqa: F401
from tiny import make_tokenizer
from written_rows import rows_in

from verl_aiops.cli.main import main
from verl_aiops.data import PreferenceDataset
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.on_policy.pairs import OwnPairOptions, build_own_pairs
from verl_aiops.incidents import neutralise
from verl_aiops.rewards.aiops_mturn import compute_score


def mixed(job):
    """Right, wrong, the same wrong again, no verdict, right in one field with control tokens."""
    texts = [right(job), other(job), other(job), "<|im_end|>no idea", other(job, 1)]
    return (f"I see {job.sample // 3}.", texts[job.sample])


def build(folder, out, form, **options):
    return build_own_pairs([folder], out, options=OwnPairOptions(form=form, **options))


def test_a_group_has_all_answers_with_the_rewards_scores(asked, tmp_path):  # noqa: F811
    out = tmp_path / "groups.parquet"
    folder = asked(mixed, n=5)
    summary = build(folder, out, "groups")
    made = rows_in(out)
    assert len(made) == summary.pairs == summary.with_pair == summary.incidents
    assert summary.left_out["repeated"] == len(made)
    for row in made:
        assert len(row["completions"]) == 4
        for one in row["completions"]:
            assert [message["role"] for message in one["messages"]] == ["assistant", "user", "assistant"]
            assert all(neutralise(m["content"]) == m["content"] for m in one["messages"] if m["role"] == "assistant")
            turns = [m["content"] for m in one["messages"] if m["role"] == "assistant"]
            told = compute_score(
                "", turns[-1], row["ground_truth"], {"turns": turns, "incident_text": row["incident_text"]}
            )
            assert one["score"] == pytest.approx(told["score"])
        best = max(row["completions"], key=lambda one: one["score"])
        assert json.loads(best["messages"][-1]["content"])["service"] == json.loads(row["ground_truth"])["service"]
    data = PreferenceDataset(
        str(out), make_tokenizer(), max_prompt_length=None, max_response_length=None, progress=False, kinds={"list"}
    )
    assert len(data) == len(made) and "groups of own answers" in str(summary) and "groups of" in str(summary)


def test_labels_are_the_verdicts_of_the_reward(asked, tmp_path):  # noqa: F811
    out = tmp_path / "labels.parquet"
    folder = asked(mixed, n=5)
    summary = build(folder, out, "labels", invalid=False)
    made = rows_in(out)
    assert summary.left_out["invalid"] == summary.left_out["repeated"] == summary.incidents
    assert summary.pairs == len(made) == 3 * summary.incidents and summary.kinds["right"] == summary.incidents
    for row in made:
        told = compute_score("", row["completion"][-1]["content"], row["ground_truth"])
        assert row["label"] == (told["acc_main"] == 1) == (row["kind"] == "right")


def test_groups_of_one_score_are_counted_and_nothing_but_them_is_refused(asked, tmp_path):  # noqa: F811
    def texts(job):
        lucky = sum(job.question.id.encode()) % 2 == 0
        return ("I see.", right(job) if lucky and job.sample else other(job))

    summary = build(asked(texts, n=2), tmp_path / "g.parquet", "groups")
    assert 0 < summary.without_pair["all answers have the same score"] < summary.incidents
    assert "incidents without a group: all answers have the same score" in str(summary)
    same = asked(lambda job: ("I see.", right(job)), n=2, name="same")
    with pytest.raises(EvaluationError, match="no group can be made of"):
        build(same, tmp_path / "n.parquet", "groups")
    # as labels they are worth something
    assert set(build(same, tmp_path / "l.parquet", "labels").kinds) == {"right"}


def test_the_command(asked, tmp_path, capsys):  # noqa: F811
    folder = asked(mixed, n=5)
    own = ["build-prefs", "--from-generations", str(folder), "--out", str(tmp_path / "o.parquet")]
    assert main([*own, "--groups"]) == 0
    assert "groups of own answers from 1 evaluation:" in capsys.readouterr().out
    assert "completions" in pq.read_schema(tmp_path / "o.parquet").names
    for more in (["--chosen", "own"], ["--pairs-per-incident", "3"]):
        assert main([*own, "--labels", "--overwrite", *more]) == 2
        assert f"{more[0]}: has no meaning with --labels" in capsys.readouterr().err
