"""Arguments that are refused, with messages that say what to do; and what a trainer can ask about a loss."""

import inspect

import pytest
import torch

from verl_aiops.losses import (
    LOSSES,
    compute_dpo_loss,
    needs_lengths,
    needs_reference,
    needs_whole_batch,
    validate_loss_args,
)

PAIR_LOSSES = [name for name, spec in LOSSES.items() if spec.of == "pair"]
NO_F = ["nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "dpop"]
NO_SMOOTHING = sorted(set(PAIR_LOSSES) - {"sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"})
LOGPS = [torch.zeros(2)] * 4
LENGTHS = {"chosen_lengths": torch.tensor([3, 4]), "rejected_lengths": torch.tensor([5, 2])}

BAD_SETTINGS = [
    ({"loss_type": "sigmiod"}, "unknown loss_type 'sigmiod'.*did you mean 'sigmoid'.*there are: sigmoid, robust, hin"),
    ({"loss_type": "dpo"}, "unknown loss_type 'dpo'.*did you mean 'sigmoid'"),
    ({"loss_type": 3}, "unknown loss_type 3; there are"),
    ({"loss_type": "nothing_like_it"}, r"unknown loss_type 'nothing_like_it'; there are: "),
    ({"loss_type": []}, "empty list"),
    ({"loss_type": ["sigmoid", "sigmoid"]}, "names a loss twice"),
    ({"loss_type": ["sigmoid", "nca"]}, "did you mean 'nca_pair'"),
    ({"loss_weights": [1.0, 2.0]}, "loss_weights has 2 values for 1 losses"),
    ({"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0, -2.0]}, "each of loss_weights must be >= 0, got -2.0"),
    ({"beta": 0.0}, "beta must be > 0, got 0.0"),
    ({"beta": float("nan")}, "beta must be > 0, got nan"),
    ({"beta": "0.1"}, "beta must be > 0, got '0.1'"),
    ({"beta": True}, "beta must be > 0, got True"),
    ({"label_smoothing": 0.6}, r"label_smoothing must be in \[0, 0.5\], got 0.6"),
    ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 0.5\], got -0.1"),
    ({"loss_type": "robust", "label_smoothing": 0.5}, r"must be in \[0, 0.5\) for robust, got 0.5"),
    ({"loss_type": "exo_pair"}, r"must be in \(0, 0.5\] for exo_pair \(its paper takes 1e-3\), got 0.0"),
    ({"sft_weight": -1.0}, "sft_weight must be >= 0"),
    ({"loss_type": ["sigmoid", "sft"], "sft_weight": 0.1}, "use one of the two"),
    ({"loss_type": "simpo", "simpo_gamma": -0.5}, "simpo_gamma must be >= 0"),
    ({"loss_type": "dpop", "dpop_lambda": -1}, "dpop_lambda must be >= 0"),
    ({"loss_type": "discopop", "discopop_tau": 0.0}, "discopop_tau must be > 0"),
    ({"simpo_gamma": 1.0}, r"simpo_gamma=1.0 has no effect on loss_type \['sigmoid'\]; it is for simpo"),
    ({"dpop_lambda": 5.0}, "dpop_lambda=5.0 has no effect.*it is for dpop"),
    ({"discopop_tau": 0.1}, "discopop_tau=0.1 has no effect.*it is for discopop"),
    ({"f_divergence_type": "kl"}, "unknown f_divergence_type 'kl'; there are: reverse_kl, forward_kl"),
    ({"f_alpha_divergence_coef": 0.7}, "f_alpha_divergence_coef=0.7 has no effect.*f_divergence_type='alpha_div"),
    (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": float("inf")},
        "f_alpha_divergence_coef must be a finite number",
    ),
    ({"loss_type": "sft", "f_divergence_type": "forward_kl"}, "f_divergence_type='forward_kl' has no effect"),
    ({"loss_type": ["sigmoid", "bco_pair"], "f_divergence_type": "js_divergence"}, "no form for loss_type 'bco_pair'"),
    *(({"loss_type": name, "f_divergence_type": "js_divergence"}, f"no form for loss_type '{name}'") for name in NO_F),
    *(({"loss_type": n, "label_smoothing": 0.1}, rf"0.1 has no effect on loss_type \['{n}'\]") for n in NO_SMOOTHING),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_bad_settings(settings, message):
    """The check alone refuses them, and so does the loss before it computes anything."""
    with pytest.raises(ValueError, match=message):
        validate_loss_args(**settings)
    with pytest.raises(ValueError, match=message):
        compute_dpo_loss(*LOGPS, **LENGTHS, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        *({"loss_type": name} for name in PAIR_LOSSES if name != "exo_pair"),
        {"loss_type": "exo_pair", "label_smoothing": 1e-3},
        {"loss_type": "robust", "label_smoothing": 0},
        {"loss_type": ("sigmoid", "bco_pair"), "label_smoothing": 0.5, "loss_weights": (1, 0)},
        {"loss_type": ["hinge", "simpo"], "f_divergence_type": "forward_kl", "simpo_gamma": 0},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": -2},
        {"sft_weight": 1, "beta": 3},
    ],
    ids=str,
)
def test_good_settings(settings):
    assert validate_loss_args(**settings) is None
    assert compute_dpo_loss(*LOGPS, **LENGTHS, **settings)[0].isfinite().all()


def test_the_check_and_the_loss_agree_on_names_and_defaults():
    loss, check = (inspect.signature(f).parameters for f in (compute_dpo_loss, validate_loss_args))
    assert {name: p.default for name, p in check.items()} == {name: loss[name].default for name in check}
    assert set(loss) - set(check) == {
        *(f"{model}_{answer}_logps" for model in ("policy", "reference") for answer in ("chosen", "rejected")),
        *("chosen_lengths", "rejected_lengths", "mean_chosen_length", "weight", "score_gap"),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("position", range(4))
def test_half_types_are_refused(position, dtype):
    logps = [x.to(dtype) if i == position else x for i, x in enumerate(LOGPS)]
    with pytest.raises(TypeError, match=f"logps is {dtype}; give float32 or float64"):
        compute_dpo_loss(*logps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([torch.zeros(2), torch.zeros(3), *LOGPS[2:]], r"same shape \(pairs,\), got .*\(2,\).*\(3,\)"),
        ([torch.zeros(2, 1)] * 4, r"same shape \(pairs,\)"),
        ([torch.zeros(())] * 4, r"same shape \(pairs,\)"),
        ([*LOGPS[:3], None], "both reference_chosen_logps and reference_rejected_logps, or neither"),
        (LOGPS[:2], r"loss_type \['sigmoid'\] needs reference_chosen_logps and reference_rejected_logps"),
    ],
)
def test_bad_logps(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_dpo_loss(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ipo"}, "'ipo' needs chosen_lengths and rejected_lengths"),
        ({"loss_type": "simpo", "chosen_lengths": [1, 2]}, "'simpo' needs rejected_lengths"),
        ({"loss_type": "sft"}, r"'sft' needs chosen_lengths \(or mean_chosen_length\)"),
        ({"sft_weight": 0.5}, r"'sft' needs chosen_lengths \(or mean_chosen_length\)"),
        ({"loss_type": "sft_seq", "mean_chosen_length": 3.0}, "'sft_seq' needs chosen_lengths$"),
        ({"chosen_lengths": [1, 2, 3]}, r"chosen_lengths must have shape \(2,\), got \(3,\)"),
        ({"weight": [[1.0, 2.0]]}, r"weight must have shape \(2,\), got \(1, 2\)"),
        ({"loss_type": "sft", "mean_chosen_length": 0.0}, "mean_chosen_length must be > 0"),
        ({"loss_type": "sft", "mean_chosen_length": torch.ones(2)}, "mean_chosen_length must be one number"),
        ({"loss_type": ["sigmoid", "aot"], "weight": [1.0, 2.0]}, "weights other than 1 have no meaning for.*aot"),
    ],
)
def test_bad_lengths_and_weights(options, message):
    with pytest.raises(ValueError, match=message):
        compute_dpo_loss(*LOGPS, **options)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_needs_are_what_the_loss_asks_for(name):
    """A loss runs without what it does not need, and only then."""
    smoothing = {"label_smoothing": 1e-3} if name == "exo_pair" else {}
    for needed, logps, lengths in (
        (needs_reference(name), LOGPS[:2], LENGTHS),
        (needs_lengths(name), LOGPS, {}),
    ):
        if needed:
            with pytest.raises(ValueError, match="needs"):
                compute_dpo_loss(*logps, loss_type=name, **lengths, **smoothing)
        else:
            assert compute_dpo_loss(*logps, loss_type=name, **lengths, **smoothing)[0].shape == (2,)


def test_needs_of_several_losses():
    assert {name for name in PAIR_LOSSES if needs_whole_batch(name)} == {"aot", "aot_unpaired"}
    assert {name for name in PAIR_LOSSES if not needs_reference(name)} == {"simpo", "sft", "sft_seq"}
    assert {n for n in PAIR_LOSSES if needs_lengths(n)} == {"ipo", "sigmoid_norm", "simpo", "sft", "sft_seq"}
    assert needs_whole_batch(["sigmoid", "aot"]) and not needs_whole_batch(["sigmoid", "sft"])
    assert needs_reference(["simpo", "hinge"]) and not needs_reference(["simpo", "sft"])
    assert needs_lengths(["hinge", "ipo"]) and not needs_lengths(["hinge", "sigmoid"])
    assert needs_lengths("sigmoid", sft_weight=0.1) and not needs_lengths("sigmoid", sft_weight=0.0)
    for ask in (needs_whole_batch, needs_reference, needs_lengths):
        with pytest.raises(ValueError, match="unknown loss_type 'dop'"):
            ask("dop")


def test_lengths_given_where_they_are_not_needed_change_nothing():
    logps = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.0]), *LOGPS[2:]]
    bare = compute_dpo_loss(*logps)
    for given in (LENGTHS, {"mean_chosen_length": 3.5}):
        assert torch.equal(compute_dpo_loss(*logps, **given)[0], bare[0])


def test_mean_chosen_length_replaces_the_lengths_for_sft():
    chosen = torch.tensor([-6.0, -2.0])
    for mean in (4, 4.0, torch.tensor(4)):
        losses = compute_dpo_loss(chosen, chosen, loss_type="sft", mean_chosen_length=mean, chosen_lengths=[1, 1])[0]
        assert losses.tolist() == [1.5, 0.5] and losses.dtype == torch.float32


@pytest.mark.parametrize("name", ["ipo", "sigmoid_norm", "simpo", "sft", "sft_seq"])
def test_an_empty_answer_is_no_division_by_zero(name):
    none = {"chosen_lengths": [0, 0], "rejected_lengths": [0, 0]}
    one = {"chosen_lengths": [1, 0], "rejected_lengths": [1, 1]}
    losses = compute_dpo_loss(*LOGPS, loss_type=name, **none)[0]
    assert losses.isfinite().all()
    assert torch.equal(losses, compute_dpo_loss(*LOGPS, loss_type=name, **one)[0])


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_weights_of_one_are_fine_for_every_loss(name):
    logps = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.0]), *LOGPS[2:]]
    bare = compute_dpo_loss(*logps, loss_type=name)[0]
    assert torch.equal(compute_dpo_loss(*logps, loss_type=name, weight=torch.ones(2))[0], bare)
