"""What README and pages say of settings and files is what the code has."""

import contextlib
import io
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from verl_aiops.cli.main import COMMANDS, make_parser
from verl_aiops.losses import F_DIVERGENCES, LOSS_TYPES, LOSSES
from verl_aiops.rewards.model.combined import CombinedSettings
from verl_aiops.rollout.rounds.settings import RoundSettings
from verl_aiops.trainers.config import DPOConfig, OnlineDPOConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
README_ZH = (ROOT / "README_zh.md").read_text(encoding="utf-8")
OFFLINE = (ROOT / "docs" / "dpo.md").read_text(encoding="utf-8")
RL = (ROOT / "docs" / "rl.md").read_text(encoding="utf-8")
ONLINE = (ROOT / "docs" / "online_dpo.md").read_text(encoding="utf-8")
REWARD = (ROOT / "docs" / "reward_model.md").read_text(encoding="utf-8")
PAGES = {page: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))}
DOCS = README + "".join(PAGES.values())


def rows_of(text):
    return re.findall(r"^\| `(\w+)` \| `([^`]*)` \| (.*) \|$", text, flags=re.MULTILINE)


ROWS = rows_of(OFFLINE)


@pytest.mark.parametrize(
    "text, settings",
    [(OFFLINE, DPOConfig), (RL, RoundSettings), (ONLINE, OnlineDPOConfig), (REWARD, CombinedSettings)],
)
def test_every_setting_stands_in_the_docs_with_its_default(text, settings):
    as_yaml = {None: "null", True: "true", False: "false"}
    defaults = {f.name: f.default for f in fields(settings) if f.init}
    said = {name: default for name, default, _ in rows_of(text)}
    assert sorted(said) == sorted(defaults)
    for name, default in defaults.items():
        expected = as_yaml[default] if default is None or isinstance(default, bool) else str(default)
        assert said[name] == expected, name


def test_every_loss_and_divergence_stands_in_the_table_of_settings():
    meanings = {name: meaning for name, _, meaning in ROWS}
    for name in LOSS_TYPES:
        assert f"`{name}`" in meanings["loss_type"], name
    for name in F_DIVERGENCES:
        assert f"`{name}`" in meanings["f_divergence_type"], name


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"\b(?:examples|scripts|benchmarks|docs)/[\w./-]+\.(?:sh|py|md)\b", DOCS):
        assert (ROOT / path).is_file(), path


def test_every_preset_and_script_stands_in_the_docs():
    for preset in (ROOT / "verl_aiops" / "config" / "verl_aiops").glob("*.yaml"):
        assert re.search(rf"\b{preset.stem}\b", DOCS), preset.stem
    for script in (ROOT / "examples").glob("*.sh"):
        assert script.name in DOCS, script.name


def commands_of(text):
    """Indented blocks, without comments."""
    lines = [re.sub(r"\s+#.*", "", line).rstrip() for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "zh").glob("*.md")), ids=lambda page: page.name)
def test_both_languages_give_the_same_commands_and_knobs(page):
    chinese, english = page.read_text(encoding="utf-8"), (ROOT / "docs" / page.name).read_text(encoding="utf-8")
    assert commands_of(chinese) == commands_of(english) != []
    first_columns = [re.findall(r"^\| (`[^|]*`) \|", text, flags=re.MULTILINE) for text in (chinese, english)]
    assert first_columns[0] == first_columns[1]
    assert f"({page.name})" not in chinese and f"(../{page.name})" in chinese and f"(zh/{page.name})" in english


def test_both_readmes_take_five_minutes_and_say_the_same():
    assert len(README.splitlines()) <= 150
    assert commands_of(README_ZH) == commands_of(README) != []
    targets = [re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) for text in (README_ZH, README)]
    # of the pages that there are in Chinese, those
    chinese = {f"docs/zh/{page.name}": f"docs/{page.name}" for page in (ROOT / "docs" / "zh").glob("*.md")}
    chinese |= {"README.md": "README_zh.md"}
    assert [chinese.get(target, target) for target in targets[0]] == targets[1]
    assert not {f"docs/{Path(page).name}" for page in chinese} & set(targets[0])
    counted = [text.count("\n## ") for text in (README, README_ZH)]
    assert counted[0] == counted[1]


def printed_commands():
    """(where, line) of each command of ours that a page or a `--help` prints to be copied, with what is a shell's and
    what stands for a number filled in."""
    blocks = {"README.md": README, **{str(page.relative_to(ROOT)): text for page, text in PAGES.items()}}
    for where, text in blocks.items():
        variables = dict(re.findall(r'^ {4}([A-Z])="?([^"\n]*)"?$', text, flags=re.MULTILINE))
        for line in re.findall(r"^(?: {4})?(?:[A-Z]+=\S+ )*(verl-aiops .*)$", text.replace("\\\n", " "), re.MULTILINE):
            if not re.match(r"verl-aiops (is|COMMAND)\b", line):
                yield where, re.sub(r"\$([A-Z])\b", lambda name, of=variables: of[name[1]], line)
    for name, command in COMMANDS.items():
        for line in command.examples.replace("\\\n", " ").splitlines():
            yield f"{name} --help", line


def test_every_command_that_is_printed_is_one():
    lines = [(where, re.sub(r" [>|] .*|\.\.\.", "", line)) for where, line in printed_commands()]
    assert len(lines) > 200
    parser = make_parser()
    for where, line in lines:
        words = shlex.split(re.sub(r"--fold I\b", "--fold 0", line), comments=True)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parser.parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{where}: {line}\n{said.getvalue().splitlines()[-1]}")


def test_links_between_pages_lead_somewhere():
    for page, text in {ROOT / "README.md": README, ROOT / "README_zh.md": README_ZH, **PAGES}.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_loss_stands_in_the_page_of_its_kind():
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    titles = {"pair": "Pairs", "list": "Ranked lists", "single": "Single answers with yes or no"}
    for kind, title in titles.items():
        section = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        named = [name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)]
        assert sorted(named) == sorted(name for name, spec in LOSSES.items() if spec.of == kind)
    gap = page.partition("It is for losses of a difference: ")[2].partition(". ")[0]
    assert re.findall(r"`(\w+)`", gap) == [name for name, spec in LOSSES.items() if spec.has_gap]


def test_advice_that_the_page_prints():
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    code, _, printed = page.partition("```python\n")[2].partition("```\n```text\n")
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(code, {})
    assert told.getvalue() == printed.partition("```")[0]
