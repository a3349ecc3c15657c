"""BCO's running mean of rewards, and what is said of the numbers of yes and no."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from verl_aiops.data import PreferenceDataError
from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.dpo.order import example_lines
from verl_aiops.trainers.dpo.pairs import load_pairs, pair_tokens
from verl_aiops.trainers.dpo.shift import RunningShift


def test_the_running_mean_is_that_of_all_answers_and_comes_back_with_a_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=size) for size in (4, 1, 7)]
    shift = RunningShift()
    for step in steps:
        shift.add(float(step.mean()), len(step))
    shift.add(float("nan"), 0)  # a step without single answers
    assert shift.mean == pytest.approx(np.concatenate(steps).mean()) and shift.answers == 12
    shift.save(str(tmp_path))
    assert RunningShift.load(str(tmp_path)) == shift


@pytest.mark.parametrize("content", [None, "{", '{"median": 1}'])
def test_a_checkpoint_without_it_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "shift.json").write_text(content)
    with pytest.raises(ValueError, match="shift.json.*loss_type=bco.*resume_mode=disable"):
        RunningShift.load(str(tmp_path))


def config(file):
    data = {"max_prompt_length": 64, "max_response_length": 64, "truncation": "error", "shuffle": True, "seed": 1}
    return OmegaConf.create({**data, "apply_chat_template_kwargs": None, "train_files": file})


def verdicts(yes, no, prompts=3):
    labels = [True] * yes + [False] * no
    return [
        {"prompt": f"q {at % prompts}?", "completion": f"a {at}", "label": label} for at, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    "yes, no, said",
    [
        (7, 6, "7 answers with a yes, 6 with a no: weighted, 1.17 to 1"),
        (
            8,
            2,
            "warning: 8 answers with a yes, 2 with a no.* 4 to 1.*undesirable_weight between 3 and 4 gives",
        ),
        (2, 8, "warning: 2 answers with a yes, 8 with a no.*dpo.desirable_weight between 4 and 5.33 gives"),
        (4, 0, "warning: all 4 single answers have a yes"),
    ],
)
def test_imbalance_is_said_with_the_weights_that_are_recommended(tokenizer, write_rows, yes, no, said):
    dpo = DPOConfig.from_config({"loss_type": "kto"})
    train = load_pairs(config(write_rows(verdicts(yes, no))), tokenizer, "train", dpo=dpo)
    counted, line = example_lines(train, dpo)
    assert counted == f"data.train_batch_size counts examples: {yes + no} single answers, of 3 prompts"
    assert re.search(said, line), line


def test_what_the_losses_need_is_asked_of_the_whole_data(tokenizer, write_rows):
    one_prompt = config(write_rows(verdicts(2, 2, prompts=1)))
    with pytest.raises(
        PreferenceDataError, match="train_files.*kto estimates the KL.*all single answers have one prompt"
    ):
        load_pairs(one_prompt, tokenizer, "train", dpo=DPOConfig.from_config({"loss_type": "kto"}))
    bco = DPOConfig.from_config({"loss_type": "bco"})
    assert len(load_pairs(one_prompt, tokenizer, "train", dpo=bco)) == 4
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(PreferenceDataError, match="score_margin=1.0 has no effect, as no pair has scores"):
        load_pairs(config(write_rows(rows)), tokenizer, "train", dpo=DPOConfig.from_config({"score_margin": 1.0}))
    rows = [{**rows[0], "margin": 0.5}]
    scored = load_pairs(config(write_rows(rows)), tokenizer, "train", dpo=DPOConfig.from_config({"score_margin": 1.0}))
    assert scored[0]["margin"] == 0.5


def test_single_answers_cost_the_row_for_the_kl_where_there_is_one():
    lengths = np.array([[10, 3, 4], [10, 5, 0], [7, 2, 6]])
    dataset = SimpleNamespace(lengths=lengths, kinds=np.array(["pair", "single", "single"]))
    assert pair_tokens(dataset).tolist() == [27, 15, 22]
    assert pair_tokens(dataset, alone=True).tolist() == [27, 15, 9]
