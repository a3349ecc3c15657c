"""Equality with values that TRL's own loss code gave (tests/fixtures/dpo_losses.json), in float64 to 1e-8.

Loss and gradient per record, and the reward metrics where the record has them. `ld_alpha` needs token log-probs that
the file does not hold; what its record does determine is worked out in the last test.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from verl_aiops.losses import compute_dpo_loss, sum_logps

RECORDS = json.loads((Path(__file__).parents[1] / "fixtures" / "dpo_losses.json").read_text())["records"]
SAMPLE = next(record for record in RECORDS if record["seed"] == 0 and "policy_logps" in record)
TOLERANCE = {"rtol": 0, "atol": 1e-8}


def name_of(record):
    extras = [f"{key}={record[key]}" for key in ("label_smoothing", "f_divergence", "ld_alpha") if key in record]
    if "init_identity" in record:
        extras.append("init")
    return ",".join(["+".join(record["loss_types"]), f"beta={record['beta']}", *extras])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def loss_gradient_metrics(record, policy, reference):
    policy = policy.clone().requires_grad_()
    lens = torch.tensor(record.get("lens", SAMPLE["lens"]))
    options = {"label_smoothing": record.get("label_smoothing", 0.0)}
    if "weights" in record:
        options["loss_weights"] = record["weights"]
    if "f_divergence" in record:
        options["f_divergence_type"] = record["f_divergence"]
    losses, chosen, rejected = compute_dpo_loss(
        *policy.chunk(2),
        *reference.chunk(2),
        beta=record["beta"],
        loss_type=record["loss_types"],
        chosen_lengths=lens.chunk(2)[0],
        rejected_lengths=lens.chunk(2)[1],
        **options,
    )
    losses.mean().backward()
    metrics = {
        "rewards/chosen": chosen.mean().item(),
        "rewards/rejected": rejected.mean().item(),
        "rewards/accuracies": (chosen > rejected).double().mean().item(),
        "rewards/margins": (chosen - rejected).mean().item(),
    }
    return losses.mean().item(), policy.grad, metrics


def float32_constants(record, policy, reference):
    """What TRL's exo_pair adds to the loss by keeping log(e) and log(1 - e) in float32: some 5e-8, gradient 3e-9."""
    if record["loss_types"] != ["exo_pair"]:
        return 0.0
    smoothing = record["label_smoothing"]
    chosen, rejected = (policy - reference).chunk(2)
    prefers_chosen = torch.sigmoid(record["beta"] * (chosen - rejected)).mean().item()
    rounded = torch.tensor(smoothing, dtype=torch.float32)
    off_chosen = math.log1p(-smoothing) - torch.log1p(-rounded).item()
    off_rejected = math.log(smoothing) - torch.log(rounded).item()
    return prefers_chosen * off_chosen + (1 - prefers_chosen) * off_rejected


def test_the_file_covers_the_losses_of_trl():
    assert len(RECORDS) == 54
    assert len({name for record in RECORDS for name in record["loss_types"]}) == 15


@pytest.mark.parametrize("record", [r for r in RECORDS if "ld_alpha" not in r], ids=name_of)
def test_loss_gradient_and_metrics(record):
    if "init_identity" in record:
        policy = reference = tensor(SAMPLE["ref_logps"])
    else:
        policy, reference = tensor(record["policy_logps"]), tensor(record["ref_logps"])
    loss, gradient, metrics = loss_gradient_metrics(record, policy, reference)
    assert loss + float32_constants(record, policy, reference) == pytest.approx(record["loss"], rel=0, abs=1e-8)
    torch.testing.assert_close(gradient, tensor(record["grad"]), **TOLERANCE)
    if "metrics" in record:
        assert metrics == pytest.approx(record["metrics"], rel=0, abs=1e-8)
    else:
        assert "init_identity" in record and metrics["rewards/margins"] == 0.0


def test_length_desensitised_record():
    """The record's gradient gives each pair's margin; the shorter answer of a pair is all public, so its log-ratio is
    the plain one; hence the longer answer's. The tail that this leaves must give, through sum_logps, the loss, the
    gradient and both reward means, none of which went into the derivation except the gradient."""
    (record,) = (r for r in RECORDS if "ld_alpha" in r)
    beta, alpha = record["beta"], record["ld_alpha"]
    policy, reference = tensor(record["policy_logps"]), tensor(record["ref_logps"])
    chosen_lens, rejected_lens = torch.tensor(record["lens"]).chunk(2)
    public = torch.minimum(chosen_lens, rejected_lens)
    longer_is_chosen = chosen_lens > rejected_lens
    assert (chosen_lens != rejected_lens).all() and longer_is_chosen.any() and not longer_is_chosen.all()

    pairs = len(public)
    slope = -tensor(record["grad"]).chunk(2)[0] * pairs / beta  # sigmoid(-beta * margin)
    margin = -torch.logit(slope) / beta
    chosen, rejected = (policy - reference).chunk(2)
    weighted = torch.cat(
        [
            torch.where(longer_is_chosen, rejected + margin, chosen),
            torch.where(longer_is_chosen, rejected, chosen - margin),
        ]
    )
    tail = (torch.cat([chosen, rejected]) - weighted) / (1 - alpha)  # log-ratio of the tokens beyond the public length

    def summed(total, tail):
        """Spread a row over its tokens: all of the tail on the first token beyond the public length."""
        public_both = torch.cat([public, public])
        mask = torch.arange(8) < torch.tensor(record["lens"]).unsqueeze(1)
        tokens = torch.where(mask, 0.0, float("nan")).double()
        tokens[:, 0] = total - tail
        rows = tail != 0
        tokens[rows, public_both[rows]] = tail[rows]
        torch.testing.assert_close(sum_logps(tokens, mask), total)
        return sum_logps(tokens, mask, ld_alpha=alpha, public_lengths=public_both)

    tail = torch.where(tail.abs() < 1e-9, 0.0, tail)  # what rounding left on the shorter answers
    assert (tail != 0).sum() == pairs
    loss, gradient, metrics = loss_gradient_metrics(record, summed(policy, tail), summed(reference, 0 * tail))
    assert loss == pytest.approx(record["loss"], rel=0, abs=1e-8)
    torch.testing.assert_close(gradient, tensor(record["grad"]), **TOLERANCE)
    assert metrics == pytest.approx(record["metrics"], rel=0, abs=1e-8)
