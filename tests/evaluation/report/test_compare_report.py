"""The report of a comparison: one complete file, the same shape whatever a model writes, plots and tables to read."""

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from compare_harness import Guessing, evaluated, in_faults, questions_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from verl_aiops.evaluation.compare.numbers import comparison_of
from verl_aiops.evaluation.compare.pairing import pair
from verl_aiops.evaluation.compare.read_runs import read_runs
from verl_aiops.evaluation.report import plots, wording
from verl_aiops.evaluation.report.html import MAX_CHARS, html_report
from verl_aiops.evaluation.report.svg import COLOURS, drawing, save
from verl_aiops.evaluation.report.text import render_comparison

VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """Tags with their attributes in order, and the text; fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.open, self.styles = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.words).append(data)

    @property
    def text(self):
        return "".join(self.words)

    def all(self, tag, key=None):
        return [dict(attributes).get(key) if key else dict(attributes) for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pairing(tmp_path_factory):
    base, questions = tmp_path_factory.mktemp("runs"), in_faults(questions_of(20))
    evaluated(base / "sft", questions, Guessing(0.4, 0.8, 0.5), samples=2, temperature=0.8)
    evaluated(base / "grpo", questions[:19], Guessing(0.9, 1.0, 0.9, seed=1), samples=2, temperature=0.7)
    lost = questions[2].id
    down = Guessing(0.5, seed=2, fails=lambda job: "down" if job.question.id == lost else None)
    evaluated(base / "ppo", questions, down, samples=2)
    return pair(read_runs([str(base / label) for label in ("sft", "grpo", "ppo")]))


@pytest.fixture(scope="module")
def result(pairing):
    return comparison_of(pairing)


@pytest.fixture(scope="module")
def page(result, pairing):
    return html_report(result, pairing, [], shown=3)


@pytest.fixture(scope="module")
def drawn(result):
    pytest.importorskip("matplotlib")
    return plots.comparison_plots(result)


# --- one file that is complete ----------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(result, pairing, drawn):
    page = Page(html_report(result, pairing, drawn, shown=3))
    without = {"script", "link", "iframe", "object", "embed", "base", "form", "img", "image", "foreignobject", "source"}
    assert not without & {tag for tag, _ in page.tags}
    assert len(page.all("svg")) == 3 and all(picture["aria-label"] for picture in page.all("svg"))
    assert all(address.startswith("#") for address in page.all("a", "href"))
    assert all(address.startswith("#") for address in page.all("use", "xlink:href"))
    assert not any("url(" in style or "@import" in style for style in page.styles)
    values = [value for _, attributes in page.tags for _, value in attributes if value]
    assert all(place.startswith("#") for value in values for place in re.findall(r"url\((.*?)\)", value))
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not any(key.startswith("on") for _, attributes in page.tags for key, _ in attributes)


def test_sections_and_their_links(page):
    page = Page(page)
    ids = page.all("section", "id")
    wanted = ["runs", "metrics", "over-k", "slices", "classes", "incidents", "method"]
    assert [name for name in ids if name] == wanted
    assert [address[1:] for address in page.all("a", "href")] == wanted
    assert len(page.all("h1")) == 1 and len(page.all("title")) == 1


def test_every_head_of_a_table_says_what_it_heads(page):
    assert all(head["scope"] in ("col", "row", "colgroup") for head in Page(page).all("th"))
    assert len(Page(page).all("th")) > 100


def test_what_was_compared_left_out_and_failed_is_said(page, pairing):
    text = " ".join(Page(page).text.split())
    assert "18 incidents of 10 faults, answered by all 3 runs" in text
    assert "1 incident of sft and ppo left out: not asked of grpo" in text
    assert "1 incident of sft, grpo and ppo left out: without an answer of ppo" in text
    assert "ppo: 2 answers failed and count in no figure." in text
    for ids in pairing.left_out["ppo"].values():
        assert all(name in text for name in ids)
    assert "Settings that differ" in text and "temperature" in text


def test_lists_of_names_are_not_squeezed_in_narrow_windows(result, pairing):
    text = html_report(result, pairing, [], shown=0)
    assert "td.said { min-width:" in text and text.count('<td class="said">') >= 2


def test_every_figure_of_the_metrics_stands_in_the_page(page, result):
    text = Page(page).text
    for metric in result["metrics"].values():
        assert metric["title"] in text
        for mean in metric["values"].values():
            for part in wording.value_parts(mean, metric["digits"]):
                assert part in text
        for entry in metric["comparisons"].values():
            for part in (*wording.change_parts(entry["difference"], metric["digits"]), wording.p_text(entry["p_holm"])):
                assert part in text


def test_what_is_left_out_is_told_in_few_sentences():
    def left_out(label):
        return {f"not asked of {other}": [label + other] for other in "abcd" if other != label}

    runs = [{"label": label, "incidents": 9, "left_out": left_out(label)} for label in "abcd"]
    assert [sentence for sentence, _ in wording.left_out({"runs": runs[:1]})] == [
        f"1 incident of a left out: not asked of {other}" for other in "bcd"
    ]
    found = wording.left_out({"runs": runs})
    sentence = "3 of 9 incidents of a left out: 1 not asked of b; 1 not asked of c; 1 not asked of d"
    assert len(found) == 4 and found[0] == (sentence, ["ab", "ac", "ad"])


@pytest.mark.parametrize(
    "names, text", [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_lists_in_words(names, text):
    assert wording.listed(names) == text


def test_as_many_examples_are_shown_as_asked_for(result, pairing):
    for shown in (0, 1, 4):
        found = Page(html_report(result, pairing, [], shown)).all("details", "class").count("example")
        flips = [len(result["flips"][label][way]) for label in ("grpo", "ppo") for way in ("better", "worse")]
        assert found == sum(min(shown, count) for count in flips)


def test_long_texts_are_cut_and_the_rest_is_counted(pairing, result):
    long = with_texts(pairing, "x" * (MAX_CHARS + 1234), "y", around="z")
    text = Page(html_report(comparison_of(long), long, [], shown=2)).text
    assert "… and 1,234 more characters" in text and "x" * MAX_CHARS in text and "x" * (MAX_CHARS + 1) not in text


# --- hostile texts ----------------------------------------------------------------------------------------------------


def with_texts(pairing, thought, label, around=None):
    """The pairing with everything that a model wrote, and every name that the data give, replaced."""

    def hostile(line):
        said = line["predicted"] and {"service": label + "1", "incident_type": label + "2"}
        return {**line, "rounds": [thought] * len(line["rounds"]), "predicted": said, "source": label + line["source"]}

    answers = {
        run: [[hostile(line) for line in lines] for lines in answers] for run, answers in pairing.answers.items()
    }
    said = thought if around is None else around
    runs = tuple(replace(run, notes=(said,), path=said, settings={"model": said}) for run in pairing.runs)
    return replace(pairing, answers=answers, runs=runs, notes=(said,))


SOME = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                "<script>",
                "</pre>",
                "</details>",
                "<!--",
                "-->",
                "]]>",
                "&lt;",
                "&",
                '"',
                "'",
                "`",
                "<img src=x onerror=a()>",
            ]
            + [
                "{{ 7 * 7 }}",
                "{% raw %}",
                "{#",
                "\x00",
                "\u202e",
                "\u200b",
                "\x1b[2J",
                "\r\n",
                "\ud800",
                "</style>",
                "\u2028",
            ]
            + ["</title>", "</textarea>", "<svg/onload=a()>", "javascript:", "\uffff", "e\u0301" * 20, "$\\frac{1}{0}$"]
        ),
        max_size=8,
    ).map("".join),
)


@pytest.fixture(scope="module")
def harmless(pairing):
    kept = with_texts(pairing, "harmless", "label")
    return Page(html_report(comparison_of(kept), kept, [], shown=2)).tags


@settings(deadline=None, max_examples=15)
@given(thought=SOME, label=SOME)
@example(thought="<script>alert(1)</script>", label="<b>")
@example(thought="\ud800\x00\u202e", label="\udfff")
@example(thought="</pre></details></section></main></body></html>", label="</td></tr></table>")
def test_whatever_a_model_writes_the_page_keeps_its_shape(pairing, harmless, thought, label):
    hostile = with_texts(pairing, thought, label)
    result = comparison_of(hostile)
    text = html_report(result, hostile, [], shown=2)
    page = Page(text)
    assert text.encode("utf-8")
    assert [pair for pair in zip(page.tags, harmless) if pair[0] != pair[1]][:3] == []
    assert len(page.tags) == len(harmless)
    assert wording.visible(thought) in page.text
    assert not any(c in text for c in "\x00\x1b\u202e\u200b\u2028")
    table = render_comparison(result)
    assert all(c.isprintable() or c in "\n" for c in table.replace(wording.visible(thought), ""))


def test_a_hostile_label_of_a_run_is_shown_as_text(pairing):
    named = [replace(run, label=f"<i>{at}</i>&amp;") for at, run in enumerate(pairing.runs)]
    again = pair(named)
    page = Page(html_report(comparison_of(again), again, [], shown=1))
    assert "i" not in {tag for tag, _ in page.tags} and "<i>1</i>&amp; is better than <i>0</i>&amp;" in page.text


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\x1b[31m\r", "⟨U+001B⟩[31m⟨U+000D⟩"),
        ("\ud800\udfff", "⟨U+D800⟩⟨U+DFFF⟩"),
        ("é 中文 🙂", "é 中文 🙂"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(text, shown):
    assert wording.visible(text) == shown


# --- words and figures ------------------------------------------------------------------------------------------------


def mean(value, low, high):
    return {"value": value, "low": low, "high": high}


def test_values_and_changes_in_words():
    assert wording.value_parts(mean(0.6123, 0.54, 0.68)) == ("61.2 %", "[54.0, 68.0]")
    assert wording.value_parts(mean(0.71, None, None), 3) == ("0.710", "")
    assert wording.value_parts(mean(1234.5, 1000, 2000), 0) == ("1,234", "[1,000, 2,000]")
    assert wording.value_parts(mean(None, None, None)) == ("–", "")
    assert wording.change_parts(mean(0.092, 0.051, 0.133)) == ("+9.2", "[+5.1, +13.3]")
    assert wording.change_parts(mean(-0.0001, -0.02, 0.0)) == ("0.0", "[−2.0, 0.0]")
    assert wording.change_parts(mean(-1234.5, None, None), 1) == ("−1,234.5", "")
    assert [wording.p_text(p) for p in (None, 0.0, 0.00012, 0.0123, 0.456, 1.0)] == [
        "–",
        "< 0.0001",
        "0.0001",
        "0.012",
        "0.46",
        "1.00",
    ]


@pytest.mark.parametrize(
    "p, change, kind, start",
    [
        (
            0.01,
            0.1,
            "better",
            "b is better than a: both fields right in 50.0 % of answers with a, 60.0 % with b; +10.0",
        ),
        (0.01, -0.1, "worse", "b is worse than a:"),
        (0.05, 0.1, "open", "No difference shown between b and a:"),
    ],
)
def test_verdicts_follow_the_corrected_p(p, change, kind, start):
    values = {"a": mean(0.5, 0.4, 0.6), "b": mean(0.5 + change, 0.5, 0.7)}
    entry = {"difference": mean(change, -0.2, 0.2), "p": 0.001, "p_holm": p}
    result = {
        "runs": [{"label": "a"}],
        "metrics": {"acc_main": {"values": values, "comparisons": {"b": entry}}},
        "by": {"part": {}},
    }
    found, sentence = wording.verdict(result, "b")
    assert found == kind and sentence.startswith(start)


def test_the_terminal_table_has_a_block_for_each_run(result):
    text = render_comparison(result)
    assert text.count("both fields right  ") == 2
    assert "1 incident of sft and ppo left out: not asked of grpo" in text and "2 of 40 answers failed" in text
    assert all(len(line) <= 170 for line in text.splitlines())
    assert text.rstrip().splitlines()[-1] == wording.verdict(result, "ppo")[1]


# --- plots ------------------------------------------------------------------------------------------------------------


SVG = "{http://www.w3.org/2000/svg}"


def styles_of(picture, tag):
    return [element.get("style", "") for element in ET.fromstring(picture).iter(SVG + tag)]


def test_plots_are_svg_that_follow_the_readers_colours(drawn):
    assert [plot.name for plot in drawn] == ["differences.svg", "over_k.svg", "slices.svg"]
    for plot in drawn:
        root = ET.fromstring(plot.svg)
        assert root.tag == SVG + "svg" and root.get("role") == "img" and root.get("aria-label")
        sheet = root.find(SVG + "style").text
        light, dark = sheet.split("@media screen and (prefers-color-scheme: dark)")
        assert "color: #24292f" in light and "color: #e6e6e6" in dark
        # every colour is the text's or of a class that both kinds of screens have one for, and nothing has a ground
        styles = [style for tag in ("path", "use", "text", "g") for style in styles_of(plot.svg, tag)]
        assert not re.findall(r"#[0-9a-fA-F]{3}", " ".join(styles)) and "currentColor" in " ".join(styles)
        classes = {name for element in root.iter() for name in element.get("class", "").split()} - {root.get("class")}
        assert classes and all(f".{name} {{ " in light and f".{name} {{ " in dark for name in classes)
        assert {element.get("stroke") for element in root.iter()} - {None} <= {colour.lower() for colour in COLOURS}


def test_text_of_plots_is_text_in_the_readers_fonts(drawn, result):
    titles = " ".join(ET.fromstring(drawn[0].svg).itertext())
    for name in ("acc_main", "json_ok", "abstained"):
        assert result["metrics"][name]["title"] in titles
    assert all("sans-serif" in style and "currentColor" in style for style in styles_of(drawn[0].svg, "text"))


def test_pictures_stand_in_the_page_side_by_side(result, pairing, drawn):
    text = html_report(result, pairing, drawn, shown=0)
    assert all(text.count(plot.svg) == 1 for plot in drawn)
    ids = re.findall(r'\bid="([^"]*)"', "".join(plot.svg for plot in drawn))
    assert ids and len(ids) == len(set(ids))
    assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink)\")", "".join(plot.svg for plot in drawn))


def test_a_picture_by_itself_is_one_too(tmp_path, result):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    for name in ("x.svg", "x.png"):
        with drawing():
            figure, axis = pyplot.subplots()
            axis.plot([0, 1], label="\x1b<b>")
            axis.legend()
            save(figure, tmp_path / name, "a\x1bb")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    root = ET.fromstring((tmp_path / "x.svg").read_text(encoding="utf-8"))
    assert "\ufffd<b>" in "".join(root.itertext()) and root.get("aria-label") == "a\ufffdb"


def test_runs_differ_in_colour_marker_and_line(result, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(plots, "as_svg", lambda figure, *said: figures.append(figure) or "")
    plots.comparison_plots(result)
    over_k = next(figure for figure in figures if len(figure.axes) == 3)
    lines = over_k.axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1, 2]] * 3
    expected = [
        [100 * point["value"] for point in result["over_k"]["pass"]["values"][label]]
        for label in ("sft", "grpo", "ppo")
    ]
    assert [list(line.get_ydata()) for line in lines] == expected
    for a, b in itertools.combinations(lines, 2):
        assert (
            a.get_color() != b.get_color()
            and a.get_marker() != b.get_marker()
            and a.get_linestyle() != b.get_linestyle()
        )
    assert over_k.legends[0].handlelength > 3, "a legend's line is too short for its pattern"


def test_intervals_are_drawn_where_the_numbers_are(result, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(plots, "as_svg", lambda figure, *said: figures.append(figure) or "")
    plots.comparison_plots(result)
    drawn = [sorted(line.get_xdata()) for line in figures[0].axes[0].lines if len(line.get_xdata()) == 2]
    for label in ("grpo", "ppo"):
        change = result["metrics"]["acc_main"]["comparisons"][label]["difference"]
        assert [100 * change["low"], 100 * change["high"]] in drawn


def test_next_to_nothing_is_not_drawn_large(pairing, monkeypatch):
    pytest.importorskip("matplotlib")
    same = pair([replace(pairing.runs[0], label=label) for label in ("a", "b")])
    figures = []
    monkeypatch.setattr(plots, "as_svg", lambda figure, *said: figures.append(figure) or "")
    plots.comparison_plots(comparison_of(same))
    low, high = figures[0].axes[0].get_xlim()
    assert low <= -1.9 and high >= 1.9
    for limits, expected in [((-0.055, 0.055), (-0.2, 3.8)), ((99.95, 100.05), (96.2, 100.2)), ((-5, 105), (-5, 105))]:
        assert plots._share_limits(limits) == pytest.approx(expected)


def test_labels_with_dollar_signs_and_markup_are_drawn(pairing):
    pytest.importorskip("matplotlib")
    odd = pair([replace(run, label=label) for run, label in zip(pairing.runs, ("$\\frac$", "_under", "a & <b>"))])
    assert len(plots.comparison_plots(comparison_of(odd))) == 3
