"""The loss formulas: each takes a batch of pairs, of single answers or of ranked lists, and gives one value for each.

Notation: w is the chosen answer, l the rejected one; pi the policy, ref the reference; all log-probs are sums over the
answer's tokens, |y| is an answer's length in tokens.

    r_w = log pi(w) - log ref(w),   r_l = log pi(l) - log ref(l),   d = r_w - r_l,   S = the logistic function

Single answers and those of a list have r alike. A ``score_margin`` m makes beta d of a pair with score gap g to
beta d - m g wherever the formula has it (``PairTerms.beyond_gap``).

Where a formula says "any f", an f-divergence replaces r by f'(pi / ref) (``divergence.py``). An equation number is
given where a public implementation cites it for the formula that is written here; a bare paper means that the formula
is the paper's but its number was not confirmed. "As TRL" marks choices which the paper leaves open and TRL fixes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from verl_aiops.losses.divergence import capped_exp
from verl_aiops.losses.settings import LossSettings
from verl_aiops.losses.terms import AnswerTerms, ListTerms, PairTerms, given, per_token


def _smoothed_logistic(logits: Tensor, smoothing: float) -> Tensor:
    return -(1.0 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def sigmoid(p: PairTerms, k: LossSettings) -> Tensor:
    """DPO: -(1 - e) log S(beta d) - e log S(-beta d), any f; e is the label smoothing.

    DPO is e = 0: arXiv 2305.18290, Eq. 7. With e > 0 it is conservative DPO (cDPO, E. Mitchell's note
    https://ericmitchell.ai/cdpo.pdf, Eq. 3): each label is taken to be wrong with probability e.
    """
    return _smoothed_logistic(k.beta * p.margin(k), k.label_smoothing)


def robust(p: PairTerms, k: LossSettings) -> Tensor:
    """Robust DPO: (-(1 - e) log S(beta d) + e log S(-beta d)) / (1 - 2e), any f.

    arXiv 2403.00409: an unbiased estimate of the DPO loss on clean labels when each is flipped with probability
    e = label_smoothing < 1/2. One pair's value may be negative.
    """
    logits = k.beta * p.margin(k)
    debiased = -(1.0 - k.label_smoothing) * F.logsigmoid(logits) + k.label_smoothing * F.logsigmoid(-logits)
    return debiased / (1.0 - 2.0 * k.label_smoothing)


def hinge(p: PairTerms, k: LossSettings) -> Tensor:
    """max(0, 1 - beta d), any f.

    The hinge of SLiC-HF (arXiv 2305.10425) on reference-normalised log-probs: "hinge-norm" in RSO, arXiv 2309.06657.
    """
    return torch.relu(1.0 - k.beta * p.margin(k))


def ipo(p: PairTerms, k: LossSettings) -> Tensor:
    """(r_w / |w| - r_l / |l| - 1 / (2 beta))^2, any f; beta is the paper's tau.

    arXiv 2310.12036, Eq. 17, with log-ratios averaged over tokens. The paper does not speak of averaging; TRL does it
    and reports that the authors confirmed it. The summed form is ``ipo_sum``.
    """
    return (p.mean_margin(k) - 1.0 / (2.0 * k.beta)) ** 2


def ipo_sum(p: PairTerms, k: LossSettings) -> Tensor:
    """(d - 1 / (2 beta))^2, any f: arXiv 2310.12036, Eq. 17, on summed log-probs as in the DPO authors' code."""
    return (p.margin(k) - 1.0 / (2.0 * k.beta)) ** 2


def exo_pair(p: PairTerms, k: LossSettings) -> Tensor:
    """S(beta d) log(S(beta d) / (1 - e)) + S(-beta d) log(S(-beta d) / e), any f.

    EXO-pref for two answers, arXiv 2402.00856, Eq. 16: the KL from the policy's preference to the smoothed label. It
    is infinite without smoothing, so e = label_smoothing must be positive; the paper's value is 1e-3.
    """
    logits = k.beta * p.margin(k)
    chosen = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-k.label_smoothing))
    rejected = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(k.label_smoothing))
    return chosen + rejected


def nca_pair(p: PairTerms, k: LossSettings) -> Tensor:
    """-log S(beta r_w) - 1/2 log S(-beta r_w) - 1/2 log S(-beta r_l): NCA for two answers, arXiv 2402.05369."""
    chosen, rejected = k.beta * p.chosen_logratios, k.beta * p.rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(p: PairTerms, k: LossSettings) -> Tensor:
    """-log S(beta r_w) - log S(-beta r_l).

    BCO, arXiv 2404.04656, on pairs and without the paper's reward shift (a running mean of rewards), as TRL.
    """
    return -F.logsigmoid(k.beta * p.chosen_logratios) - F.logsigmoid(-k.beta * p.rejected_logratios)


def sppo_hard(p: PairTerms, k: LossSettings) -> Tensor:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2; beta is the paper's 1 / eta.

    SPPO, arXiv 2405.00675, Eq. 4.7, with the win probabilities set to 1 and 0 instead of a preference model's.
    """
    target = 0.5 / k.beta
    return (p.chosen_logratios - target) ** 2 + (p.rejected_logratios + target) ** 2


def _sorted_logistic(upper: Tensor, lower: Tensor, k: LossSettings) -> Tensor:
    """Compare two samples rank by rank; each rank's value goes to the pair whose ``upper`` has that rank."""
    order = torch.argsort(upper, stable=True)
    by_rank = _smoothed_logistic(k.beta * (upper[order] - torch.sort(lower).values), k.label_smoothing)
    return by_rank[torch.argsort(order)]


def aot(p: PairTerms, k: LossSettings) -> Tensor:
    """Smoothed logistic loss of beta (u_(i) - v_(i)): u = log pi(w) - log pi(l) and v = the same of ref, each sorted.

    Paired AOT, arXiv 2406.05882, with the logistic surrogate and label smoothing as TRL. Sorting couples the pairs of
    a batch: the mean over a batch is not the mean over its parts.
    """
    reference = given(p.reference_chosen) - given(p.reference_rejected)
    return _sorted_logistic(p.policy_chosen - p.policy_rejected, reference, k)


def aot_unpaired(p: PairTerms, k: LossSettings) -> Tensor:
    """Smoothed logistic loss of beta (r_w(i) - r_l(i)), the chosen and the rejected log-ratios each sorted.

    Unpaired AOT, arXiv 2406.05882, with the same choices and the same coupling as ``aot``.
    """
    return _sorted_logistic(p.chosen_logratios, p.rejected_logratios, k)


def apo_zero(p: PairTerms, k: LossSettings) -> Tensor:
    """1 - S(beta r_w) + S(beta r_l): arXiv 2408.06266, Eq. 7, for chosen answers better than the model's own."""
    return torch.sigmoid(-k.beta * p.chosen_logratios) + torch.sigmoid(k.beta * p.rejected_logratios)


def apo_down(p: PairTerms, k: LossSettings) -> Tensor:
    """S(beta r_w) + 1 - S(beta d): arXiv 2408.06266, Eq. 8, for chosen answers worse than the model's own."""
    margin = p.chosen_logratios - p.rejected_logratios
    return torch.sigmoid(k.beta * p.chosen_logratios) + torch.sigmoid(-k.beta * margin)


def discopop(p: PairTerms, k: LossSettings) -> Tensor:
    """-(1 - m) log S(x) + m exp(-x) with x = beta d, m = S(x / tau), any f.

    DiscoPOP's log-ratio modulated loss, arXiv 2406.08414, Eq. 5; tau = 0.05 is the paper's. It is not convex: with
    that tau its slope at d = 0 is positive, so a policy equal to the reference is first pushed the wrong way, which
    the formula owns and this code keeps. m exp(-x) is formed as one exponential, as exp(-x) alone overflows.
    """
    x = k.beta * p.margin(k)
    logistic = -torch.sigmoid(-x / k.discopop_tau) * F.logsigmoid(x)
    return logistic + capped_exp(F.logsigmoid(x / k.discopop_tau) - x)


def sigmoid_norm(p: PairTerms, k: LossSettings) -> Tensor:
    """-log S(beta (r_w / |w| - r_l / |l|)), any f: length-normalised DPO, as in Tulu 3 (arXiv 2411.15124).

    Per-token log-ratios are small: beta is of order 1 to 10 here rather than 0.1.
    """
    return -F.logsigmoid(k.beta * p.mean_margin(k))


def simpo(p: PairTerms, k: LossSettings) -> Tensor:
    """-log S(beta log pi(w) / |w| - beta log pi(l) / |l| - gamma): SimPO, arXiv 2405.14734, Eq. 6. No reference.

    gamma is the paper's margin in units of reward, not the gamma / beta of its authors' later configurations. They
    use beta 2 to 10, and gamma / beta 0.1 to 0.8.
    """
    chosen = per_token(p.policy_chosen, p.chosen_lengths)
    rejected = per_token(p.policy_rejected, p.rejected_lengths)
    return -F.logsigmoid(k.beta * p.beyond_gap(chosen - rejected, k) - k.simpo_gamma)


def dpop(p: PairTerms, k: LossSettings) -> Tensor:
    """-log S(beta (d - lambda max(0, -r_w))): DPO-Positive (Smaug), arXiv 2402.13228.

    It is DPO while the chosen answer is at least as likely as under the reference, and dear as soon as it is less.
    lambda stands inside the bracket that beta multiplies, as in the paper (which used beta 0.3, lambda 50); some
    implementations put it outside.
    """
    margin = p.chosen_logratios - p.rejected_logratios
    return -F.logsigmoid(k.beta * (margin - k.dpop_lambda * torch.relu(-p.chosen_logratios)))


def sft(p: PairTerms, k: LossSettings) -> Tensor:
    """-log pi(w) / (mean |w| over the batch): its mean over pairs is the mean over all chosen tokens. No reference.

    The likelihood term of MPO (arXiv 2411.10442) and of RPO variants, as TRL.
    """
    return -p.policy_chosen / p.tokens_per_chosen()


def sft_seq(p: PairTerms, k: LossSettings) -> Tensor:
    """-log pi(w) / |w|: every chosen answer counts the same whatever its length. No reference.

    The normalisation of Iterative RPO's likelihood term, arXiv 2404.19733, over the answer alone.
    """
    return -per_token(p.policy_chosen, p.chosen_lengths)


# --- single answers: y was found good or bad; a formula's factor lambda_y is put on by compute_answer_loss ------------


def kto(p: AnswerTerms, k: LossSettings) -> Tensor:
    """1 - S(beta (r - z)) of a good answer, 1 - S(beta (z - r)) of a bad one; z >= 0 estimates KL(pi || ref).

    KTO, arXiv 2402.01306, Eq. 8: lambda_y - v, with lambda_y as a factor in front. z is a constant: no gradient.
    """
    return torch.sigmoid(-k.beta * p.signed(p.logratios - given(p.kl)))


def apo_zero_unpaired(p: AnswerTerms, k: LossSettings) -> Tensor:
    """1 - S(beta r) of a good answer, S(beta r) of a bad one: the halves of ``apo_zero`` (arXiv 2408.06266, Eq. 7).

    As TRL. It is ``kto`` with z = 0, for good answers that are better than the model's own.
    """
    return torch.sigmoid(-k.beta * p.signed(p.logratios))


def bco(p: AnswerTerms, k: LossSettings) -> Tensor:
    """-log S(beta r - delta) of a good answer, -log S(-(beta r - delta)) of a bad one.

    BCO, arXiv 2404.04656, without its density ratio for differing prompts; delta, the reward shift, is a running mean
    of the rewards beta r of good and bad answers alike, as TRL had it.
    """
    return -F.logsigmoid(p.signed(k.beta * p.logratios - given(p.shift)))


# --- lists: the answers to one prompt, ranked -------------------------------------------------------------------------


def plackett_luce(p: ListTerms, k: LossSettings) -> Tensor:
    """sum over answers i of -log(exp(beta r_i) / (exp(beta r_i) + sum over j ranked below i of exp(beta r_j))).

    Without ties it is -log of the probability of the ranking, DPO's paper (arXiv 2305.18290), appendix A.3, Eq. 20.
    Answers of equal rank are not compared: neither stands in the other's denominator. One best answer and several
    worse of equal rank give S-DPO, arXiv 2406.09215; two answers ``sigmoid``; a list of ties 0.
    """
    rewards = (k.beta * p.logratios).masked_fill(~p.present, 0.0)
    itself = torch.eye(rewards.shape[1], dtype=torch.bool, device=rewards.device)
    rivals = rewards.unsqueeze(1).masked_fill(~(p.worse | itself), -torch.inf)
    return (torch.logsumexp(rivals, dim=2) - rewards).sum(dim=1)


def listwise(p: ListTerms, k: LossSettings) -> Tensor:
    """-sum over answers i of t_i log(exp(beta r_i) / sum over j of exp(beta r_j)), t = softmax(score / tau).

    InfoNCA, arXiv 2402.05369; tau is its reward temperature alpha (``score_temperature``). The cross entropy of two
    softmaxes is that of ListNet and of LiPO's softmax loss (arXiv 2402.01878), which take other targets. A target
    on one answer alone gives S-DPO.
    """
    rewards = (k.beta * p.logratios).masked_fill(~p.present, -torch.inf)
    targets = torch.softmax((p.scores / k.score_temperature).masked_fill(~p.present, -torch.inf), dim=1)
    # 0 in place of -inf where no answer stands, whose target is 0
    return -(targets * torch.log_softmax(rewards, dim=1).masked_fill(~p.present, 0.0)).sum(dim=1)
