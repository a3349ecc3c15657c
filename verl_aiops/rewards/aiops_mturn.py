"""The rule reward for incident triage in one or several rounds.

The model sees an incident; in the rounds before the last it thinks and quotes, in the last it answers with nothing but
`{"service": "...", "incident_type": "..."}`. verl finds `compute_score` by
`reward.custom_reward_function.path=pkg://verl_aiops.rewards.aiops_mturn`.

The score
---------
With P the sum of the four weights that pay (so that weights are relative and a perfect answer earns 1)::

    score = clip01( ( format_weight        * json_ok
                    + service_weight       * service_ok
                    + type_weight          * type_ok
                    + evidence_weight      * evidence
                    - early_verdict_weight * early_verdict
                    - invented_weight      * min(1, invented / 4)
                    - length_weight        * overlong ) / P )

====================  =======  =====================================================================================
component             default  what it is
====================  =======  =====================================================================================
`json_ok`                0.05  the answer is exactly one JSON object, see `answer.parse_answer`
`service_ok`             0.40  the service is the true one or one of its aliases, see `answer.normalise_label`
`type_ok`                0.40  the same for the incident type
`evidence`               0.15  quality of the quotations, 0 unless both fields are right, see `evidence.Judgement`
`early_verdict`         -0.05  a round before the last gives a verdict or JSON, see `early_verdict`
`invented`              -0.05  quotations that are not in the incident, four or more cost it all
`overlong`              -0.05  0 up to `length_budget` characters of all rounds, rising to 1 at twice as many
====================  =======  =====================================================================================

Where a row asks for more than service and incident type (severity, team: `ground_truth.fields`), the object has exactly
these keys, and each further field whose label the row knows is paid like the two: `field_weight` times whether it is
right joins the sum, and `field_weight` joins P.

So a perfect two-round answer earns 1; a right one without quotations 0.85; one right field 0.45; a well-formed wrong
answer, and an abstention such as `unknown`, which is a wrong answer like any other, 0.05; anything that is not the
JSON asked for 0.

Weights may be changed (`settings.RewardSettings`), but only so that the five smaller ones together stay below each of
the field weights; other weights raise ValueError. Whatever the quotations, the form and the length, one more right
field therefore always earns more. Components that are added (`components.PARTS`) are paid or taken in the same sum, and
their weights count among the smaller ones.

What is read where
------------------
Rounds are data: `extra_info["turns"]` holds the assistant's texts. The last is the answer, those before it are searched
for quotations and verdicts, and `solution_str` is not looked at. Separators, role markers or user turns that the model
writes are just text. Without turns `solution_str` is the answer, all of it, and there is no place for quotations:
`evidence` is 0.

Where the model has markers for its reasoning (`settings.RewardSettings.reasoning`), the blocks that a round begins with
are not read at all: no verdict, no quotation and no answer in them counts for or against it. A block that is not closed
leaves nothing.

Quotations are checked against `extra_info["incident_text"]`, the data part of the prompt. Without it nothing can be
checked, so quotations neither earn nor cost. Rounds before the last that exceed `quotes.MAX_READ_CHARS` together are
not read: they earn no evidence and count as an early verdict, or a verdict could hide behind padding.

Model output never raises. Faulty data (`ground_truth`, `turns` or `incident_text` of the wrong kind) and faulty
settings do.
"""

from collections.abc import Mapping
from typing import Any

from verl_aiops.reasoning import ANY, Visible, visible
from verl_aiops.rewards.triage.answer import FIELDS, ParsedAnswer, match_label, parse_answer
from verl_aiops.rewards.triage.components import Reading, measured
from verl_aiops.rewards.triage.early_verdict import gives_verdict, may_announce
from verl_aiops.rewards.triage.evidence import Judgement, find_evidence, judge_quotations
from verl_aiops.rewards.triage.ground_truth import GroundTruth, read_ground_truth
from verl_aiops.rewards.triage.quotes import MAX_READ_CHARS, find_quotations
from verl_aiops.rewards.triage.settings import RewardSettings, read_settings

_INVENTED_FOR_FULL_COST = 4


def compute_score(
    data_source: Any, solution_str: Any, ground_truth: Any, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Score one answer; the formula is in the module's text.

    Args:
        data_source: ignored; verl passes the row's.
        solution_str: the decoded response; the answer where there are no turns.
        ground_truth: a mapping or its JSON text, see `ground_truth.read_ground_truth`.
        extra_info: a mapping, of which `turns` (list, tuple or array of str) and `incident_text` (str) are used.
        **kwargs: fields of `settings.RewardSettings`, and whatever verl's reward managers pass, which is ignored.

    Returns:
        Always the same keys, each a finite float. From 0 to 1: `score`; `acc`, the share of right fields; `acc_main`,
        both right; `json_ok`, `service_ok`, `type_ok`; `evidence`, the quality that is paid; `evidence_precision` and
        `evidence_recall`, also of wrong answers; `early_verdict`; `overlong`. Counts: `quotes`, distinct verbatim
        quotations; `invented`, distinct others; `rounds`; `chars`, of all rounds; `reasoning`, characters of reasoning
        blocks, which are in none of the others; `reasoning_cut`, whether the last round's block was not closed. Of all
        fields that the row asks for and knows: `acc_all`, all right; `fields_ok`, the share of right ones;
        `fields_known`, how many there are, two where it asks for nothing more. Then what each one of
        `components.PARTS` measured, from 0 to 1.

    Raises:
        ValueError: faulty ground truth, turns, incident text, settings or parts; never because of what the model wrote.
    """
    settings = read_settings(kwargs)
    truth = read_ground_truth(ground_truth)
    *written, incident_text = _texts(solution_str, extra_info)
    turns = [shown(text, settings) for text in written]
    *early, final = (turn.text for turn in turns)
    answer = parse_answer(final, allow_fence=settings.allow_fence, fields=truth.fields)
    service_ok = answer.ok and match_label(answer.service, truth.service)
    type_ok = answer.ok and match_label(answer.incident_type, truth.incident_type)
    right = service_ok and type_ok
    said = dict(answer.more)
    more_ok = sum(match_label(said.get(field), accepted) for field, accepted in truth.more)
    judgement, quotes, invented, early_verdict = _read_early(early, incident_text, truth, settings)
    evidence = judgement.quality if right else 0.0
    chars = len(final) + sum(map(len, early))
    over = chars / settings.length_budget - 1.0
    overlong = 0.0 if over <= 0.0 else min(1.0, over)
    earned = (
        settings.format_weight * answer.ok
        + settings.service_weight * service_ok
        + settings.type_weight * type_ok
        + settings.of_field * more_ok
        + settings.evidence_weight * evidence
        - settings.early_verdict_weight * early_verdict
        - settings.invented_weight * min(1.0, invented / _INVENTED_FOR_FULL_COST)
        - settings.length_weight * overlong
    )
    more = {}
    if settings.parts:
        reading = Reading(answer, service_ok, type_ok, tuple(early), final, incident_text, truth)
        more = {name: measured(name, part, reading) for name, part in settings.parts}
        earned += sum(part.weight * more[name] * (-1 if part.costs else 1) for name, part in settings.parts)
    return {
        "score": min(1.0, max(0.0, earned / (settings.paid + settings.of_field * len(truth.more)))),
        "acc": (service_ok + type_ok) / 2,
        "acc_main": float(right),
        "json_ok": float(answer.ok),
        "service_ok": float(service_ok),
        "type_ok": float(type_ok),
        "evidence": evidence,
        "evidence_precision": judgement.precision,
        "evidence_recall": judgement.recall,
        "quotes": float(quotes),
        "invented": float(invented),
        "early_verdict": float(early_verdict),
        "overlong": overlong,
        "rounds": float(len(early) + 1),
        "chars": float(chars),
        "reasoning": float(sum(turn.hidden for turn in turns)),
        "reasoning_cut": float(turns[-1].cut),
        "acc_all": float(right and more_ok == len(truth.more)),
        "fields_ok": (service_ok + type_ok + more_ok) / (2 + len(truth.more)),
        "fields_known": float(2 + len(truth.more)),
        **more,
    }


def shown(text: str, settings: RewardSettings) -> Visible:
    """What a turn says after its reasoning, as far as the settings know of any."""
    opened = settings.reasoning_opened or (None if settings.reasoning == ANY else False)
    return visible(text, settings.reasoning, opened)


def read_answer(text: str, reward: Mapping[str, Any], truth: Any = None) -> ParsedAnswer:
    """The answer of a last round as `compute_score` reads it under these settings, for a row with this ground truth."""
    settings = read_settings(dict(reward))
    fields = FIELDS if truth is None else read_ground_truth(truth).fields
    return parse_answer(shown(text, settings).text, allow_fence=settings.allow_fence, fields=fields)


def _texts(solution_str: Any, extra_info: Any) -> list[str]:
    """The assistant's turns, then the incident's text."""
    if extra_info is None:
        extra_info = {}
    elif not isinstance(extra_info, Mapping):
        raise ValueError(f"extra_info: expected a mapping, got {type(extra_info).__name__}")
    incident_text = extra_info.get("incident_text")
    if incident_text is None:
        incident_text = ""
    elif not isinstance(incident_text, str):
        raise ValueError(f'extra_info["incident_text"]: expected a str, got {type(incident_text).__name__}')
    turns = extra_info.get("turns")
    if hasattr(turns, "tolist"):  # a numpy array, which is how verl's batches carry lists
        turns = turns.tolist()
    if turns is not None and not isinstance(turns, list | tuple):
        raise ValueError(f'extra_info["turns"]: expected the texts of the rounds in a list, got {type(turns).__name__}')
    texts = [turn if isinstance(turn, str) else "" for turn in turns or (solution_str,)]
    return [*texts, incident_text]


def _read_early(
    early: list[str], incident_text: str, truth: GroundTruth, settings: RewardSettings
) -> tuple[Judgement, int, int, bool]:
    """What the rounds before the last are worth: judgement, verbatim and invented quotations, verdict given."""
    nothing = Judgement(0.0, 0.0, 0.0)
    if not early:
        return nothing, 0, 0, False
    if sum(map(len, early)) > MAX_READ_CHARS:
        return nothing, 0, 0, True
    if not incident_text:
        return nothing, 0, 0, any(map(gives_verdict, early))
    # One text for all of them, or a quotation repeated in a later round would be counted again. The break between
    # rounds is a line break, so at worst an unclosed mark pairs across it.
    found = find_quotations(
        "\n".join(early),
        incident_text,
        min_chars=settings.min_quote_chars,
        names=truth.names,
        # the incident's own announcements are no verdict; its words may begin one that the model ends
        keep=lambda quotation: may_announce(quotation) and not gives_verdict(quotation),
    )
    judgement = nothing
    if found.verbatim and not found.too_many:
        judgement = judge_quotations(
            found.verbatim,
            len(found.invented),
            find_evidence(incident_text, truth.evidence),
            min_chars=settings.min_quote_chars,
        )
    verdict = gives_verdict(found.rest) or found.kept != found.rest and gives_verdict(found.kept)
    return judgement, len(found.verbatim), len(found.invented), verdict
