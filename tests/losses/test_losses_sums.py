"""sum_logps: what counts, what does not, and the weights of length desensitisation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.losses import sum_logps

TOKENS = torch.tensor([[-1.0, -2.0, -4.0, -8.0], [-16.0, -32.0, -64.0, -128.0]])
MASK = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]])
cases = settings(max_examples=40, deadline=None)


def test_plain_sum_by_hand():
    assert sum_logps(TOKENS, MASK).tolist() == [-11.0, -224.0]
    assert sum_logps(TOKENS, MASK.bool()).tolist() == [-11.0, -224.0]
    assert sum_logps(TOKENS, MASK).dtype == torch.float32
    assert sum_logps(TOKENS.double(), MASK).dtype == torch.float64


def test_tokens_beyond_the_public_length_by_hand():
    """The public length counts masked tokens, not positions."""
    public = torch.tensor([2, 1])
    sums = sum_logps(TOKENS, MASK, ld_alpha=0.25, public_lengths=public)
    assert sums.tolist() == [-1 - 2 - 0.25 * 8, -32 - 0.25 * (64 + 128)]
    assert sum_logps(TOKENS, MASK, ld_alpha=0.0, public_lengths=public).tolist() == [-3.0, -32.0]


@cases
@given(seed=st.integers(0, 2**31 - 1), alpha=st.floats(0, 1))
def test_alpha_goes_straight_from_the_public_part_to_the_whole(seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    tokens = -torch.rand(4, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 9, generator=generator) < 0.6
    public = torch.randint(0, 10, (4,), generator=generator)
    none, full, part = (sum_logps(tokens, mask, ld_alpha=a, public_lengths=public) for a in (0.0, 1.0, alpha))
    torch.testing.assert_close(full, sum_logps(tokens, mask))
    torch.testing.assert_close(part, none + alpha * (full - none))
    for row in range(4):
        assert none[row].item() == pytest.approx(tokens[row][mask[row]][: public[row]].sum().item())


@cases
@given(seed=st.integers(0, 2**31 - 1), padding=st.integers(1, 6), alpha=st.none() | st.floats(0, 1))
def test_padding_does_not_count(seed, padding, alpha):
    """Columns of anything, put in anywhere outside the mask, leave sums and gradients as they were."""
    generator = torch.Generator().manual_seed(seed)
    tokens = -torch.rand(3, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 6, generator=generator) < 0.7
    options = {} if alpha is None else {"ld_alpha": alpha, "public_lengths": torch.tensor([1, 3, 5])}
    places = torch.randperm(6 + padding, generator=generator)[:6].sort().values
    padded_tokens = torch.full((3, 6 + padding), float("nan"), dtype=torch.float64)
    padded_tokens[:, ::2] = float("-inf")
    padded_tokens[:, places] = tokens
    padded_mask = torch.zeros(3, 6 + padding, dtype=torch.bool)
    padded_mask[:, places] = mask
    tokens.requires_grad_()
    padded_tokens.requires_grad_()
    plain, padded = sum_logps(tokens, mask, **options), sum_logps(padded_tokens, padded_mask, **options)
    torch.testing.assert_close(padded, plain)
    plain.sum().backward()
    padded.sum().backward()
    assert torch.equal(padded_tokens.grad[:, places], tokens.grad)
    assert (padded_tokens.grad[~padded_mask] == 0).all() and (alpha == 0 or (tokens.grad[mask] > 0).all())


def test_an_empty_row_sums_to_zero():
    assert sum_logps(TOKENS, torch.zeros_like(MASK)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_refused_with_the_reason(dtype):
    with pytest.raises(TypeError, match="token_logps is torch.*float32 or float64.*sum of -1000 nats"):
        sum_logps(TOKENS.to(dtype), MASK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": MASK[:, :3]}, r"\(rows, length\), got \(2, 4\) and \(2, 3\)"),
        ({"token_logps": TOKENS[0], "mask": MASK[0]}, r"\(rows, length\)"),
        ({"ld_alpha": 1.5, "public_lengths": torch.tensor([1, 1])}, r"ld_alpha must be in \[0, 1\], got 1.5"),
        ({"ld_alpha": -0.1, "public_lengths": torch.tensor([1, 1])}, r"ld_alpha must be in \[0, 1\]"),
        ({"ld_alpha": 0.5}, r"public_lengths of shape \(2,\), got None"),
        ({"ld_alpha": 0.5, "public_lengths": torch.tensor([1])}, r"public_lengths of shape \(2,\), got \(1,\)"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        sum_logps(**{"token_logps": TOKENS, "mask": MASK, **change})
