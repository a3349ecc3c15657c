"""The rename check: names are swapped one for one, everywhere alike, and what could be quoted still can be."""

import json
import re
from collections import Counter
from dataclasses import replace

from eval_harness import questions_of, right_answer
from hypothesis import event, given, settings
from hypothesis import strategies as st

from verl_aiops.evaluation.run.questions import Question, incident_questions
from verl_aiops.evaluation.run.rename_check import ALONE, OVERLAP, TAKEN, named, rename_question, rename_questions
from verl_aiops.incidents import PromptOptions, Taxonomy, file_source
from verl_aiops.incidents.taxonomy import ABSTENTIONS
from verl_aiops.rewards.aiops_mturn import compute_score
from verl_aiops.rewards.triage.answer import FIELDS, normalise_label
from verl_aiops.rewards.triage.ground_truth import read_ground_truth


def question(text, truth=("db", "oom"), services=("db", "cache", "api"), types=("oom", "disk_full"), **changes):
    lists = {"service": list(services), "incident_type": list(types)}
    ground_truth = {"service": truth[0], "incident_type": truth[1], "evidence": [], "candidates": lists}
    made = Question(
        id="q",
        group="g",
        source="s",
        lang="en",
        difficulty=None,
        messages=({"role": "user", "content": f"Say what failed.\n<incident>\n{text}\n</incident>"},),
        rounds=(f"Answer.\nServices: {', '.join(services)}\nTypes: {', '.join(types)}",),
        incident_text=text,
        ground_truth={**ground_truth, **changes},
    )
    return made, lists


def renamed(text, seed=0, **options):
    made, labels = question(text, **options)
    return rename_question(made, labels, seed)


def check(before, after, names):
    """What every renamed question has to keep."""
    old, new = read_ground_truth(before.ground_truth), read_ground_truth(after.ground_truth)
    assert sorted(names) == sorted(names.values()) and all(name != other for name, other in names.items())
    assert len(new.evidence) == len(old.evidence)
    assert all(item in after.incident_text for item in new.evidence)
    assert sum(after.incident_text in m["content"] for m in after.messages) == sum(
        before.incident_text in m["content"] for m in before.messages
    )
    moved = []
    for field in FIELDS:
        was, now = before.ground_truth[field], after.ground_truth[field]
        moved.append(now != was)
        assert now == names.get(was, was)
        old_list, new_list = (q.ground_truth["candidates"][field] for q in (before, after))
        assert new_list == [names.get(name, name) for name in old_list] and now in new_list
        assert all(name in after.rounds[-1] for name in new_list)
        if now != was:
            assert new._asdict()[field] == {normalise_label(now)}
    assert any(moved)
    assert (after.id, after.group, after.source) == (before.id, before.group, before.source)


def test_simulated_incidents_keep_evidence_and_truth():
    asked = questions_of(60, seed=3)
    # `none` and `unknown` are no names of this system; what they answer cannot be renamed
    questions = [q for q in asked if q.ground_truth["service"] not in ABSTENTIONS]
    made, left_out = rename_questions(asked, seed=5)
    assert len(made) == len(questions) and left_out == {TAKEN: len(asked) - len(questions)} and left_out[TAKEN] > 0
    systems = {}
    for q in questions:
        lists = systems.setdefault(q.source, {field: set() for field in FIELDS})
        for field in FIELDS:
            lists[field] |= set(q.ground_truth["candidates"][field])
    for before, after in zip(questions, made):
        labels = {field: sorted(names) for field, names in systems[before.source].items()}
        again = rename_question(before, labels, 5)
        assert again.question == after
        check(before, after, again.names)
        assert not {*ABSTENTIONS} & {*again.names}
        text = f'"{after.ground_truth["evidence"][0]}"'
        info = {"turns": [text, right_answer(after)], "incident_text": after.incident_text}
        score = compute_score("x", "", after.ground_truth, info)
        assert score["acc_main"] == 1 and score["evidence"] > 0
        remembered = {"turns": [text, right_answer(before)], "incident_text": after.incident_text}
        assert compute_score("x", "", after.ground_truth, remembered)["acc_main"] == 0


def test_names_occur_as_often_as_the_ones_they_replace():
    for before in questions_of(25, seed=8):
        if before.ground_truth["service"] in ABSTENTIONS:
            continue
        labels = {field: before.ground_truth["candidates"][field] for field in FIELDS}
        made = rename_question(before, labels, 1)

        def counts(text, names):
            return Counter(m.group() for m in re.finditer(r"[\w-]+", text) if m.group() in names)

        old = counts(before.incident_text, made.names)
        new = counts(made.question.incident_text, made.names)
        assert {made.names[name]: count for name, count in old.items()} == dict(new)


def test_collected_incidents_keep_evidence_and_truth(collected):
    source = file_source(collected.path, Taxonomy.load(collected.taxonomy))
    questions = incident_questions(source, PromptOptions(max_candidates=0))
    made, left_out = rename_questions(questions, seed=2)
    assert len(made) + sum(left_out.values()) == len(questions)
    alone = sum(q.source in collected.one_answer for q in questions)
    assert left_out == {ALONE: alone} and alone > 0
    before = {q.id: q for q in questions}
    for after in made:
        labels = {field: before[after.id].ground_truth["candidates"][field] for field in FIELDS}
        again = rename_question(before[after.id], labels, 2)
        check(before[after.id], again.question, again.names)


def test_the_seed_decides_and_each_incident_has_its_own_names():
    text = "db is slow, cache and api wait"
    first, again = renamed(text, 0), renamed(text, 0)
    assert first == again
    assert len({json.dumps(renamed(text, seed).names, sort_keys=True) for seed in range(20)}) > 1
    made, labels = question(text)
    others = [rename_question(replace(made, id=f"q{at}"), labels, 0).names for at in range(20)]
    assert len({json.dumps(names, sort_keys=True) for names in others}) > 1


WORDS = ["db", "ledger-db", "ledger", "cache", "hot-cache", "api", "a.b", "队列", "订单队列", "node7", "db_main", "Web"]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from(WORDS), min_size=2, max_size=8, unique=True),
    st.lists(
        st.sampled_from([*WORDS, "dbms", "db01", "DB", "dbPool", "web", "is", "slow", "full", "ledger-", "\n"]),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([" ", "/", "=", "-", ".", ""]),
    st.integers(0, 50),
    st.integers(0, 400),
    st.integers(1, 60),
)
def test_any_text_can_be_swapped_or_is_left_out(services, words, glue, seed, start, length):
    text = glue.join(words)
    start %= len(text)
    evidence = text[start : start + length].strip()
    made, labels = question(
        text, truth=(services[0], "oom"), services=services, evidence=[evidence] if evidence else []
    )
    result = rename_question(made, labels, seed)
    event(result.reason or "renamed")
    if result.question is None:
        assert result.reason == OVERLAP
        return
    check(made, result.question, result.names)


def test_longest_first_and_whole_words_only():
    text = "db dbms ledger-db db01 DB dbPool my_db Db (db) ledger hotdb"
    result = renamed(text, services=("db", "ledger-db", "zebra"))
    db, ledger = result.names["db"], result.names["ledger-db"]
    styled = db[0].upper() + db[1:]
    expected = f"{db} dbms {ledger} {db}01 {db.upper()} {db}Pool my_{db} {styled} ({db}) ledger hotdb"
    assert result.question.incident_text == expected


def test_camel_case_and_pods():
    text = "call PetSearch/petSearch at petsearch-7d9f4 in PetSearchController"
    result = renamed(text, truth=("PetSearch", "oom"), services=("PetSearch", "payForAdoption"))
    new = "payForAdoption"
    assert result.question.incident_text == f"call {new}/{new} at {new.lower()}-7d9f4 in {new}Controller"


def test_chinese_text_has_no_word_breaks():
    result = renamed("告警：订单队列积压，队列满", truth=("队列", "oom"), services=("队列", "订单队列"))
    assert result.question.incident_text == "告警：队列积压，订单队列满"


def test_evidence_that_cuts_a_name_is_widened_to_it():
    text = "svc ledger-db: no space"
    result = renamed(text, truth=("ledger-db", "oom"), services=("ledger-db", "cache"), evidence=["db: no space"])
    assert result.question.ground_truth["evidence"] == ["cache: no space"]


def test_a_name_that_would_meet_its_neighbours_is_not_given():
    """`a-b` becomes `a`, which with the `-b` behind it reads as `a-b` again."""
    result = renamed("a-b-b failed", truth=("a", "oom"), services=("a", "a-b"), types=("oom",))
    assert result.question is None and result.reason == OVERLAP
    # with a third name there is a way out
    for seed in range(10):
        result = renamed("a-b-b failed", seed, truth=("a", "oom"), services=("a", "a-b", "c"), types=("oom",))
        assert result.names["a-b"] == "c" and result.question.incident_text == "c-b failed"


def test_names_of_the_instruction_stay():
    made, labels = question("incident service x broke", truth=("service", "oom"), services=("service", "cache", "api"))
    made = replace(made, rounds=(made.rounds[0] + '\n{"service": "...", "incident_type": "..."}',))
    result = rename_question(made, labels, 0)
    assert result.question.ground_truth["service"] == "service"
    assert '{"service": "...", "incident_type": "..."}' in result.question.rounds[0]
    assert result.question.ground_truth["incident_type"] == "disk_full"
    only = rename_question(made, labels, 0, ("service",))
    assert only.question is None and only.reason == TAKEN


def test_a_name_of_both_kinds_stays():
    result = renamed("oom", services=("db", "oom", "api"), types=("oom", "disk_full"))
    assert result.question.ground_truth["incident_type"] == "oom" and "oom" not in result.names


def test_systems_with_one_name_are_left_out_and_counted():
    made, _ = question("db", services=("db",), types=("oom",))
    questions, left_out = rename_questions([made], 0)
    assert questions == [] and left_out == {ALONE: 1}


def test_other_names_of_the_truth_follow_it_and_no_longer_pay():
    aliases = {"service": ["database"], "incident_type": ["out_of_memory"]}
    result = renamed("database and Database are db", aliases=aliases)
    new = result.names["db"]
    styled = new[0].upper() + new[1:]
    assert result.question.incident_text == f"{new} and {styled} are {new}"
    truth = read_ground_truth(result.question.ground_truth)
    assert truth.service == {new} and "database" not in truth.names


def test_only_services_or_only_types():
    made, labels = question("db oom", aliases={"service": [], "incident_type": ["out_of_memory"]})
    services = rename_question(made, labels, 0, ("service",)).question.ground_truth
    assert services["service"] != "db" and services["incident_type"] == "oom"
    assert services["aliases"]["incident_type"] == ["out_of_memory"]
    types, _ = rename_questions([made], 0, "type")
    assert types[0].ground_truth["service"] == "db" and types[0].ground_truth["incident_type"] == "disk_full"


def test_named_says_whether_the_data_name_the_truth():
    made, _ = question("ftpd: connection from DB-2", aliases={"service": [], "incident_type": ["connection"]})
    assert named(made, "service") and named(made, "incident_type")
    made, _ = question("the dbms is slow")
    assert not named(made, "service") and not named(made, "incident_type")


def test_a_name_that_a_list_spells_otherwise_is_not_swapped():
    """In the JSON array of the prompt its quotes are escaped, so the list would go on to offer it."""
    services = ['the "old" API', "cart", "web"]
    made, labels = question("cart and web: slow", ("cart", "oom"), services)
    listed = replace(made, rounds=(f"Answer.\nServices: {json.dumps(services)}\nTypes: oom, disk_full",))
    for seed in range(8):
        found = rename_question(listed, labels, seed)
        assert found.names["cart"] == "web" and services[0] not in found.names
        assert json.loads(found.question.rounds[0].splitlines()[1].removeprefix("Services: "))[0] == services[0]
