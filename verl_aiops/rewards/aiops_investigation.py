"""The rule reward of investigations: root causes found with tools, over one whole conversation.

The model calls tools over a case's telemetry and ends with a verdict (`investigation.verdict`). verl finds
`compute_score` by `reward.custom_reward_function.path=pkg://verl_aiops.rewards.aiops_investigation`.

The score
---------
With P the sum of the weights that this record can pay, so that the best verdict earns 1 less what its calls cost::

    score = clip01( ( format_weight      * json_ok
                    + causes_weight      * causes
                    + path_weight        * path * components
                    + evidence_weight    * evidence * causes
                    + abstain_weight     * (abstained, and there is an answer)
                    - unsupported_weight * unsupported
                    - invented_weight    * min(1, invented / 4)
                    - failed_weight      * min(1, failed calls / 4)
                    - calls_weight       * min(1, calls / call_budget)
                    - length_weight      * overlong ) / P )

====================  =======  =====================================================================================
component             default  what it is
====================  =======  =====================================================================================
`json_ok`                0.05  the last message holds exactly one verdict and calls no tool
`causes`                 0.60  precision times recall over root causes, paired one to one; the right component with the
                               wrong reason counts `reason_credit` (0.5) in the precision
`path`                   0.15  precision times recall over the edges, as far as the components are right
`evidence`               0.15  quotes that the tools returned, and that speak of the components; as far as the causes
                               are right
abstention               0.20  `not_enough_evidence`, where the record says what was wrong, or that nothing was
`unsupported`           -0.05  components that no answer of a tool points at (`evidence.unsupported`)
`invented`              -0.05  quotes that no tool returned
`failed_calls`          -0.03  calls that could not be read or answered
`calls`                 -0.03  16 calls cost all of it, fewer a part
`overlong`              -0.03  0 up to `length_budget` characters of the assistant, rising to 1 at twice as many
====================  =======  =====================================================================================

Precision times recall, not F1: see `matching.agreement`. A record without a path pays none, and one without reasons
pays the component as all of the cause; P is then what is left. Where nothing is wrong `no_fault` is the right verdict,
and where the telemetry cannot tell (`cannot_tell`) the abstention is; any cause is then wrong, as `no_fault` is beside
root causes. What is no verdict earns 0.

Weights may be changed (`investigation.settings`), but only so that the whole right set, however dearly bought, earns
more than any abstention, and every abstention more than any verdict without a right component.

What is read where
------------------
`extra_info["turns"]` holds the assistant's texts, `extra_info["tool_calls"]` the calls with what they returned, as the
agent loop `aiops_tools` kept them; `solution_str` is looked at where there are no turns alone. Role markers, calls and
results of tools that the model writes into its text are just text. Where no calls were kept nothing can be checked:
quotes and unsupported components then neither earn nor cost.

Model output never raises. Faulty data (`ground_truth`, `turns`, `tool_calls`) and faulty settings do.
"""

from typing import Any

from verl_aiops.reasoning import ANY, Visible, visible
from verl_aiops.rewards.investigation.components import Reading
from verl_aiops.rewards.investigation.evidence import Quoted, judge_quotes, unsupported
from verl_aiops.rewards.investigation.ground_truth import InvestigationTruth, read_investigation_truth
from verl_aiops.rewards.investigation.matching import Matched, agreement, match_causes, path_of
from verl_aiops.rewards.investigation.settings import InvestigationSettings, read_investigation_settings
from verl_aiops.rewards.investigation.transcript import Transcript, read_transcript
from verl_aiops.rewards.investigation.verdict import Verdict, parse_verdict
from verl_aiops.rewards.triage.components import measured

_FULL_COST = 4
"""Invented quotes, or failed calls, that cost all of their weight."""


def compute_score(
    data_source: Any, solution_str: Any, ground_truth: Any, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Score one investigation; the formula is in the module's text.

    Args:
        data_source: ignored; verl passes the row's.
        solution_str: the decoded response; the last message where there are no turns.
        ground_truth: a mapping or its JSON text, see `investigation.ground_truth.read_investigation_truth`.
        extra_info: a mapping, see `investigation.transcript.read_transcript`.
        **kwargs: fields of `investigation.settings.InvestigationSettings`, and whatever verl's reward managers pass,
            which is ignored.

    Returns:
        Always the same keys (`investigation.components.RESULTS`), each a finite float. From 0 to 1: `score`; `acc`, the
        F1 over root causes, the right component with the wrong reason counting `reason_credit`; `acc_main`, the exact
        set; `json_ok`; `causes`, what is paid; `precision`, `recall`, `f1` over exact causes; `any_service`,
        `all_services`, whether a true component is named, or all; `components`, precision times recall over these;
        `reasons`, the share of right components whose reason is right; `path_precision`, `path_recall`, `path_f1` over
        edges, 0 where `path_known` is; `evidence`; `unsupported`; `abstained`, `no_fault`, what the verdict says;
        `overlong`. Counts: `quotes`, `invented`, `calls`, `failed_calls`, `repeated_calls`, `rounds` (the assistant's
        texts), `chars`, `reasoning` (characters of reasoning blocks, in none of the others); `reasoning_cut`, whether
        the last text's block was not closed. Then what each of `components.PARTS` measured, from 0 to 1.

    Raises:
        ValueError: faulty ground truth, transcript, settings or parts; never because of what the model wrote.
    """
    settings = read_investigation_settings(kwargs)
    truth = read_investigation_truth(ground_truth)
    transcript = read_transcript(solution_str, extra_info)
    seen = [_shown(text, settings) for text in transcript.turns]
    verdict = _verdict(seen[-1].text, transcript, settings)
    matched = match_causes(verdict, truth)
    calls = transcript.calls or ()
    failed = sum(not call.ok for call in calls)
    quoted, claims = Quoted(0, 0, 0.0), 0.0
    if transcript.calls is not None and verdict.ok:
        quoted = judge_quotes(
            verdict, calls, truth, matched, min_chars=settings.min_quote_chars, max_chars=settings.max_quote_chars
        )
        claims = unsupported(verdict, calls, truth)
    chars = sum(len(turn.text) for turn in seen)
    overlong = min(1.0, max(0.0, chars / settings.length_budget - 1.0))
    found = _judged(verdict, matched, truth, settings)
    earned = (
        settings.format_weight * verdict.ok
        + settings.causes_weight * found["causes"]
        + settings.path_weight * found["path"] * found["components"]
        + settings.evidence_weight * quoted.quality * found["causes"] * (not truth.cannot_tell)
        + settings.abstain_weight * (verdict.abstained and not truth.cannot_tell)
        - settings.unsupported_weight * claims
        - settings.invented_weight * min(1.0, quoted.invented / _FULL_COST)
        - settings.failed_weight * min(1.0, failed / _FULL_COST)
        - settings.calls_weight * min(1.0, len(calls) / settings.call_budget)
        - settings.length_weight * overlong
    )
    more: dict[str, float] = {}
    if settings.parts:
        reading = Reading(verdict, matched, transcript, truth, truth.given)
        more = {name: measured(name, part, reading) for name, part in settings.parts}
        earned += sum(part.weight * more[name] * (-1 if part.costs else 1) for name, part in settings.parts)
    path_known = bool(truth.edges)
    return {
        "score": min(1.0, max(0.0, earned / _paid(settings, truth))) if verdict.ok else 0.0,
        **{name: value for name, value in found.items() if name != "path"},
        "path_known": float(path_known),
        "json_ok": float(verdict.ok),
        "evidence": quoted.quality * (found["causes"] > 0),
        "quotes": float(quoted.verbatim),
        "invented": float(quoted.invented),
        "unsupported": claims,
        "abstained": float(verdict.abstained),
        "no_fault": float(verdict.no_fault),
        "calls": float(len(calls)),
        "failed_calls": float(failed),
        "repeated_calls": float(len(calls) - len({(call.name, call.arguments) for call in calls})),
        "rounds": float(len(seen)),
        "chars": float(chars),
        "overlong": overlong,
        "reasoning": float(sum(turn.hidden for turn in seen)),
        "reasoning_cut": float(seen[-1].cut),
        **more,
    }


def read_verdict(text: str, reward: dict[str, Any]) -> Verdict:
    """The verdict of a last message as `compute_score` reads it under these settings."""
    settings = read_investigation_settings(reward)
    return parse_verdict(_shown(text, settings).text, allow_fence=settings.allow_fence)


def _shown(text: str, settings: InvestigationSettings) -> Visible:
    """What a turn says after its reasoning, as far as the settings know of any."""
    return visible(
        text, settings.reasoning, settings.reasoning_opened or (None if settings.reasoning == ANY else False)
    )


def _verdict(text: str, transcript: Transcript, settings: InvestigationSettings) -> Verdict:
    if transcript.ended_in_call:
        return Verdict(False, reason="call")
    return parse_verdict(text, allow_fence=settings.allow_fence)


def _judged(
    verdict: Verdict, matched: Matched, truth: InvestigationTruth, settings: InvestigationSettings
) -> dict[str, float]:
    """The components of the score that compare the verdict with the truth, and the metrics beside them."""
    right_edges, named_edges, true_edges = path_of(verdict, truth)
    if truth.causes:
        credit = matched.credit(settings.reason_credit)
        causes = agreement(credit, matched.predicted, matched.true, matched.components)
        components = agreement(matched.components, matched.predicted, matched.true)
        precision, recall = _share(matched.exact, matched.predicted), _share(matched.exact, matched.true)
        exact = float(matched.exact == matched.true == matched.predicted)
        acc = _share(2 * credit, matched.predicted + matched.true)
    else:
        said = verdict.no_fault if truth.no_fault else verdict.abstained
        causes = components = precision = recall = exact = acc = float(said)
    return {
        "acc": acc,
        "acc_main": exact,
        "causes": causes,
        "components": components,
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "any_service": float(matched.any_service),
        "all_services": float(matched.all_services),
        "reasons": _share(matched.exact, matched.components),
        "path": agreement(right_edges, named_edges, true_edges),
        "path_precision": _share(right_edges, named_edges) if true_edges else 0.0,
        "path_recall": _share(right_edges, true_edges),
        "path_f1": _share(2 * right_edges, named_edges + true_edges) if true_edges else 0.0,
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _paid(settings: InvestigationSettings, truth: InvestigationTruth) -> float:
    """The sum that the best verdict on this record earns, by which scores are divided."""
    return (
        settings.format_weight
        + settings.causes_weight
        + settings.path_weight * bool(truth.edges)
        + settings.evidence_weight * (not truth.cannot_tell)
        + sum(part.weight for _, part in settings.parts if not part.costs)
    )
