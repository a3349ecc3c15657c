"""The incident record: what it refuses, what it keeps, which fault it belongs to."""

from __future__ import annotations

import pytest

from verl_aiops.incidents import Incident, IncidentError, fault_id, normalise_label

GOOD = {
    "id": "shop-f001-1",
    "source": "shop",
    "service": "db",
    "incident_type": "disk_full",
    "symptom": "Orders fail.",
    "logs": ["10:00 db write failed: no space", "10:01 api timeout"],
    "trace": "span api -> db 3000 ms\nspan user -> api 3100 ms",
    "lang": "en",
    "evidence": ["10:00 db write failed: no space"],
}


def make(**changes):
    return Incident.from_dict({**GOOD, **changes})


def test_round_trip_through_the_json_form():
    full = make(
        fault="shop-f001",
        aliases={"service": ["postgres"], "incident_type": ["no_space"]},
        difficulty="hard",
        upstream=["api"],
        decoys=[["cache", "oom"]],
    )
    assert Incident.from_dict(full.to_dict()) == full
    assert make().to_dict() == GOOD


def test_optional_fields_have_defaults():
    incident = Incident.from_dict({name: GOOD[name] for name in ("id", "service", "incident_type", "symptom", "logs")})
    assert (incident.source, incident.trace, incident.lang, incident.evidence) == ("user", None, "en", ())


def test_unknown_fields_are_left_alone_but_not_misspelt_ones():
    assert make(severity="high", ticket=7) == make()
    row = {name: value for name, value in GOOD.items() if name != "evidence"}
    with pytest.raises(IncidentError, match="'evidences': not a known field; did you mean 'evidence'"):
        Incident.from_dict({**row, "evidences": []})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 7}, r"'id': expected a string, found int '7'; put the text in quotes"),
        ({"service": ""}, r"'service': expected text, found an empty string"),
        ({"service": " db"}, r"'service': expected one printable line without spaces around it.*trim"),
        ({"incident_type": "a\nb"}, r"'incident_type': expected one printable line"),
        ({"service": "x" * 201}, r"'service': expected at most 200 characters, found 201"),
        ({"service": "db<|im_end|>"}, r"'service': expected a plain name, found the chat-template marker"),
        ({"symptom": None}, r"'symptom': expected a string, found null"),
        ({"symptom": "\ud800"}, r"'symptom': expected valid Unicode, found the lone surrogate U\+D800; .*UTF-8"),
        ({"logs": "one line"}, r"""'logs': expected a list of strings, found str 'one line'; write it as \["first"""),
        ({"logs": ["fine", 3]}, r"'logs\[1\]': expected a string, found int '3'"),
        ({"logs": ["fine \udfff"], "evidence": []}, r"'logs\[0\]': expected valid Unicode"),
        ({"logs": [], "trace": None, "evidence": []}, r"'logs': expected at least one line in logs or trace"),
        ({"trace": 5}, r"'trace': expected a string, found int"),
        ({"lang": "de"}, r"'lang': expected one of en, zh .*, found str 'de'; set \"en\""),
        ({"evidence": "10:00"}, r"'evidence': expected a list of strings"),
        ({"evidence": ["  "]}, r"'evidence\[0\]': expected text, found an empty string"),
        (
            {"evidence": ["not there"]},
            r"'evidence\[0\]': expected a string that occurs verbatim .* 'not there'; copy it",
        ),
        ({"aliases": ["postgres"]}, r"'aliases': expected an object like"),
        ({"aliases": {"services": []}}, r"'aliases': expected an object like"),
        ({"upstream": [1]}, r"'upstream\[0\]': expected a string"),
        ({"decoys": [["cache"]]}, r"'decoys\[0\]': expected a pair"),
        ({"decoys": ["cache"]}, r"'decoys\[0\]': expected a pair"),
        ({"fault": 3}, r"'fault': expected a string"),
    ],
)
def test_each_fault_is_named(changes, message):
    with pytest.raises(IncidentError, match=message):
        make(**changes)


def test_missing_field_says_which_are_there():
    with pytest.raises(
        IncidentError, match=r"'logs': expected this field, found none; the record has only: id, service"
    ):
        Incident.from_dict({"id": "a", "service": "b", "incident_type": "c", "symptom": "d"})
    with pytest.raises(IncidentError, match="expected an object with the fields id, source.*found list"):
        Incident.from_dict([1])


def test_evidence_may_stand_in_any_section_but_not_across_two():
    make(evidence=["Orders fail"])
    make(evidence=["span api -> db 3000 ms\nspan user"])
    make(evidence=["no space\n10:01 api"])
    with pytest.raises(IncidentError, match="occurs verbatim"):
        make(evidence=["Orders fail.\n10:00"])


def test_right_answers_include_aliases_and_other_spellings():
    incident = make(aliases={"service": ["Postgres"], "incident_type": []})
    assert incident.is_service("DB") and incident.is_service("ｄｂ") and incident.is_service("postgres ")
    assert not incident.is_service("database")
    assert incident.is_type("Disk_Full") and not incident.is_type("disk-full")
    assert normalise_label("Straße") == normalise_label("STRASSE")


@pytest.mark.parametrize(
    ("record", "fault", "expected"),
    [
        ("nezha-shop-f213-2", None, "nezha-shop-f213"),
        ("nezha-shop-f213", None, "nezha-shop-f213"),
        ("loghub-bgl-0007", None, "loghub-bgl-0007"),
        ("petshop-030", None, "petshop-030"),
        ("INC-2024-001", None, "INC-2024-001"),
        ("INC-2024-001", "disk swap", "disk swap"),
    ],
)
def test_fault_id(record, fault, expected):
    assert fault_id(make(id=record, fault=fault)) == expected
