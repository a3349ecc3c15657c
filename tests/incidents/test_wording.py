"""The words of prompts: the built-in ones, a file of a user's own, what it may say and what it may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from verl_aiops.incidents import (
    Incident,
    IncidentError,
    PromptOptions,
    System,
    build_case,
    read_wording,
    write_wording,
)
from verl_aiops.incidents.prompts import Candidates, lists_candidates
from verl_aiops.incidents.wording import built_in

SYSTEM = System(("api", "db"), ("disk_full", "oom"))
INCIDENT = Incident("x-1", "test", "db", "disk_full", "Orders fail.", ("db no space left, {names} {form} {incident}",))
DATA = "<incident>\nSymptom: Orders fail.\nLogs:\ndb no space left, {names} {form} {incident}\n</incident>"
DATA_ZH = DATA.replace("Symptom: ", "现象：").replace("Logs:", "日志：")
FORM = '{"service": "...", "incident_type": "..."}'


def asked(lang="en", style="two_round", wording=None, **options):
    case = build_case(
        replace(INCIDENT, lang=lang), SYSTEM, PromptOptions(style=style, wording=wording or built_in(), **options)
    )
    return [message["content"] for message in case.rounds]


def written(tmp_path, text):
    file = tmp_path / "own.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_built_in_words():
    (services, types) = ('["db", "api"]', '["oom", "disk_full"]')
    assert asked(lang="en") == [
        "Incident triage, round 1 of 2. Say what failed first and how it spread. Quote the lines that show it word for "
        f'word in "double quotes". No verdict yet.\n{DATA}',
        "Round 2 of 2. Name the faulty service and the incident type. Answer with one JSON object only:\n"
        f"{FORM}\nServices: {services}\nIncident types: {types}",
    ]
    assert asked(lang="zh") == [
        '故障定位，第 1 轮（共 2 轮）。说明最先出问题的是什么、影响如何扩散，用"双引号"逐字引用依据。本轮不下结论。\n'
        + DATA_ZH,
        f"第 2 轮。给出故障服务和故障类型，只回答一个 JSON 对象：\n{FORM}\n服务：{services}\n故障类型：{types}",
    ]
    assert asked(style="direct", show_candidates=False) == [
        f"{DATA}\nIncident triage. Name the faulty service and the incident type. Answer with one JSON object only:\n"
        + FORM
    ]
    assert asked(lang="zh", style="direct", show_candidates=False) == [
        f"{DATA_ZH}\n故障定位。给出故障服务和故障类型，只回答一个 JSON 对象：\n{FORM}"
    ]


OWN = """
en:
  round2: |-
    {names}
    Now decide on {fields}. Write YAML if you like, but {form} is what is read.
  fields:
    service: {asked: the culprit, list: "Pick one: "}
"""


def test_a_file_changes_what_it_says_and_nothing_else(tmp_path):
    own = read_wording(written(tmp_path, OWN))
    first, second = asked(wording=own)
    assert second == (
        'Pick one: ["db", "api"]\nIncident types: ["oom", "disk_full"]\n'
        f"Now decide on the culprit and the incident type. Write YAML if you like, but {FORM} is what is read."
    )
    assert [first] == asked()[:1] and asked("zh", wording=own) == asked("zh")
    assert asked(style="direct", wording=own)[0].endswith(
        'Pick one: ["db", "api"]\nIncident types: ["oom", "disk_full"]'
    )
    silent = asked(wording=own, show_candidates=False)[1]
    assert silent.startswith("Now decide on"), "a line that holds an empty placeholder alone is left out"


def test_wordings_have_a_name_by_what_they_say(tmp_path):
    own = read_wording(written(tmp_path, OWN))
    assert built_in().name == "built-in" and len(own.name) == 12
    again = "en: {fields: {service: {list: 'Pick one: ', asked: the culprit}}, round2: "
    again += '"{names}\\nNow decide on {fields}. Write YAML if you like, but {form} is what is read."}'
    assert read_wording(written(tmp_path, again)).name == own.name
    assert read_wording(written(tmp_path, OWN.replace("culprit", "villain"))).name != own.name
    assert build_case(INCIDENT, SYSTEM, PromptOptions(wording=own)).wording == own.name
    assert build_case(INCIDENT, SYSTEM).wording == "built-in"


def test_what_is_written_out_is_read_back(tmp_path):
    write_wording(built_in(), tmp_path / "built_in.yaml")
    assert "{incident}        the data" in (tmp_path / "built_in.yaml").read_text(encoding="utf-8")
    assert read_wording(tmp_path / "built_in.yaml").name == "built-in"
    own = read_wording(written(tmp_path, OWN))
    write_wording(own, tmp_path / "again.yaml")
    assert read_wording(tmp_path / "again.yaml") == own


DIRECT = 'en: {direct: "%s"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("en: {round3: x}", r"own.yaml, key 'en.round3': expected one of the keys round1, round2, direct, fields"),
        ("fr: {round1: x}", r"own.yaml, key 'fr': expected one of the keys en, zh"),
        ("", "own.yaml: expected a section with the keys en, zh"),
        ("en: {round1: 3}", "key 'en.round1': expected text, found int '3'"),
        ("en: {round1: look}", r"key 'en.round1': expected the placeholder {incident} in it \({incident} are known\)"),
        ('en: {round1: "look at {incident}"}', "expected {incident} alone on its line"),
        ('en: {round1: "{incident}\\n{names}"}', "expected no other words in braces than {incident}, but {names} is"),
        ('en: {round2: "{form}\\n{names}\\n{form}"}', "expected {form} once, but it is there 2 times"),
        ('en: {round2: "{names}"}', "expected the placeholder {form} in it"),
        (DIRECT % "{incident}\\n{form}", "expected the placeholder {names} in it"),
        (DIRECT % "<|im_end|>\\n{incident}\\n{form}\\n{names}", "expected no marks of chat templates"),
        ("zh: {fields: {team: {label: x}}}", "key 'zh.fields.team.label': expected one of the keys asked, list"),
        ("en: {round1: '{incident}'}\nen: {round1: x}", "the key 'en' is given twice"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, message):
    with pytest.raises(IncidentError, match=message):
        read_wording(written(tmp_path, text))


def test_the_tags_of_the_data_may_be_spoken_of(tmp_path):
    text = 'en: {round1: "Read what stands between <incident> and </incident>.\\n{incident}"}'
    (first, _) = asked(wording=read_wording(written(tmp_path, text)))
    assert first == f"Read what stands between <incident> and </incident>.\n{DATA}"


def test_words_for_a_field_that_is_not_asked_for(tmp_path):
    own = read_wording(written(tmp_path, "en: {fields: {severty: {asked: how bad it is}}}"))
    with pytest.raises(IncidentError, match="own.yaml, key 'en.fields.severty': no such field is asked for"):
        PromptOptions(wording=own, more_fields=("severity",))
    assert PromptOptions(wording=own, more_fields=("severty",))
    # the built-in file has words for fields that not everybody asks for
    assert PromptOptions(wording=read_wording(written(tmp_path, built_in().as_yaml().replace("Name", "Say"))))


def test_lists_are_known_whatever_stands_around_them(tmp_path):
    own = read_wording(written(tmp_path, OWN))
    _, second = asked(wording=own)
    listed = Candidates(("db", "api"), ("oom", "disk_full"))
    assert lists_candidates(second, listed)
    assert not lists_candidates(second, Candidates(("api", "db"), ("oom", "disk_full")))
    assert not lists_candidates(second, replace(listed, more=(("severity", ("high", "low")),)))
    # what the incident says is no list of names to choose from
    hostile = replace(INCIDENT, logs=('["db", "api"]', '["oom", "disk_full"]'))
    direct = build_case(hostile, SYSTEM, PromptOptions(style="direct", show_candidates=False)).rounds[0]["content"]
    assert not lists_candidates(direct, listed)
