"""Which of two answers has the larger number, where a part of the difference may be rounding."""

from torch import Tensor

__all__ = ["rounding", "share_right"]

# Of sums of float32 token log-probs, and of scores: some units in the last place, as sums over other batches have them.
# What is learned is larger by far: 2e-4 nats are nothing beside a sum of -200.
_ROUNDING = 1e-6


def rounding(*numbers: Tensor) -> Tensor:
    """How much of a difference that these float32 numbers are summed up to may be rounding alone; of their shape."""
    sizes = [number.abs() for number in numbers]
    return _ROUNDING * sum(sizes[1:], start=sizes[0])


def share_right(leads: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Of each lead of the better answer how often it is ranked right: 1 above ``noise``, 0 below ``-noise``, and 1/2
    between them, where a coin would say as much: a policy that is its reference, or a head of zeros, ranks nothing.

    A lead that is no number has 0.
    """
    return (leads > noise) * 0.5 + (leads >= -noise) * 0.5
