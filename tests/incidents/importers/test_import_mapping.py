"""Mapping files: those of the package are valid, and a wrong one is refused with file, key and remedy."""

from __future__ import annotations

import pytest

from verl_aiops.incidents import IncidentError
from verl_aiops.incidents.importers import SOURCES, built_in, load_mapping
from verl_aiops.incidents.schema import normalise_label


@pytest.mark.parametrize("name", SOURCES)
def test_built_in_mappings_are_valid(name):
    SOURCES[name].check(load_mapping(built_in(name)))


def test_every_source_has_a_mapping_and_no_mapping_is_left_over():
    assert sorted(path.stem for path in built_in("x").parent.glob("*.yaml")) == sorted(SOURCES)


def labels_of(name):
    plan = SOURCES[name].check(load_mapping(built_in(name)))
    if name == "loghub":
        return {kind for system in plan[1] for kind in system.kinds}
    if name == "petshop":
        return {kind for _, kind in plan.commands}
    return set(plan.type_of.values())


def test_one_fault_has_one_name_in_all_sources():
    kinds = set().union(*map(labels_of, SOURCES))
    assert {normalise_label(kind) for kind in kinds} == kinds
    assert len({kind.replace("_", "") for kind in kinds}) == len(kinds)
    assert {"cpu_saturation", "network_delay"} <= labels_of("nezha") & labels_of("openrca")


def edited(tmp_path, name, *edits):
    text = built_in(name).read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "loghub",
            ("window:", "windows:"),
            r"key 'window': expected this key, found nothing; the section has: windows",
        ),
        ("loghub", ("shortest: 10", "shortest: ten"), r"key 'window.shortest': expected a whole number of at least 1"),
        ("loghub", ("longest: 16", "longest: 6"), r"key 'window.longest': expected at least 'shortest', 10"),
        (
            "loghub",
            ("[E80, E81]", "[E80, 81]"),
            r"BGL\.types\.filesystem_unavailable\.1': expected text, found int '81'",
        ),
        ("loghub", ("[E80, E81]", "[E80, x]"), r"expected the id of an event template, such as E12"),
        ("loghub", ("[E80, E81]", "[E80, E52]"), r"an event of one type, but it is 'memory_fault' already"),
        ("loghub", ("'(\\w+)': bgl", "'(\\w+': bgl"), r"expected a regular expression \(missing \), unterminated"),
        ("loghub", ("bgl-\\1", "bgl-\\2"), r"a template for its pattern \(invalid group reference 2"),
        ("loghub", ("label_column: true", "label_column: yes please"), r"label_column': expected true or false"),
        ("loghub", ("place: an HPC", "plaice: an HPC"), r"systems\.HPC\.place': expected this key"),
        (
            "loghub",
            ("    place: an HPC", "    color: red\n    place: an HPC"),
            r"HPC\.color': expected one of the keys",
        ),
        ("nezha", ("evidence: cpu}", "evidence: luck}"), r"expected one of cpu, latency, statements, found str 'luck'"),
        ("nezha", ('"2022-08-23": {number: 1}', '"2022-08-23": {number: 0}'), r"expected a number of one day"),
        ("nezha", ('"2022-08-22"', '"22 August"'), r"expected a day like 2022-08-22 as the key"),
        ("nezha", ('"2022-08-22"', "2022-08-22"), r"expected a key that is text"),
        ("nezha", ('"2023-01-30"', '"2022-08-22"'), r"a day of one application, but it is 'online-boutique' already"),
        ("nezha", ("type: network_delay", "type: ' delay'"), r"on one line, without spaces around it"),
        ("nezha", ("type: network_delay", "type: delay <|im_end|>"), r"spaces around it or chat-template marks"),
        ("petshop", ("'(.+?)(?:_AWS::.*)?'", "'.+'"), r"key 'service': expected a regular expression with a group"),
        ("petshop", ("scenarios: [", "scenarios: []\nnothing: ["), r"'nothing': expected one of the keys"),
        ("openrca", ("utc_offset_hours: 8", "utc_offset_hours: 80"), r"expected an offset from -12 to 14"),
        ("openrca", ("CPU fault: cpu", "HIGH CPU  usage: cpu"), r"expected a reason named once"),
        ("openrca", ("{folder: Bank, place", "{folder: Bank, where"), r"systems\.Bank\.place': expected this key"),
    ],
)
def test_wrong_mappings_are_refused(tmp_path, name, edit, message):
    path = edited(tmp_path, name, edit)
    with pytest.raises(IncidentError, match=message) as error:
        SOURCES[name].check(load_mapping(path))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1", r"line 1: not valid YAML"),
        (b"a: 1\nb: 2\na: 3\n", r"line 3: not valid YAML \(the key 'a' is given twice\)"),
        (b"a: \xff", r"not UTF-8"),
        (b"a: !!python/object/apply:os.getcwd []", r"not valid YAML"),
        (b"", r"mine\.yaml: expected a section with the keys .*, found nothing"),
        (b"[1]", r"expected a section with the keys"),
    ],
)
def test_files_that_are_no_mapping(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(IncidentError, match=message):
        SOURCES["nezha"].check(load_mapping(path))


def test_a_missing_mapping(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_mapping(tmp_path / "none.yaml")
