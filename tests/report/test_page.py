"""reports/index.html: its content, that text of models can do nothing there, and its behaviour in a real browser."""

import base64
import contextlib
import functools
import hashlib
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support import browser
from support.browser import needs_browser
from support.scored import ANSWERS, REFERENCES, answer_row, copy_other_stages, run, write_inputs, write_params

import score
import votes
from aligner.report import charts, labels, page
from aligner.report.highlight import marks
from aligner.run import params as parameters

ROOT = Path(__file__).resolve().parents[2]
MODELS = list(score.MODELS)
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)><svg onload=alert(4)>",
    '"><iframe srcdoc="<script>parent.alert(5)</script>"></iframe>',
    "[click](javascript:alert(6)) <a href=javascript:alert(7)>x</a>",
    "![image](https://evil.example/x.png) <link rel=stylesheet href=//evil.example/y>",
    "{{ 7*7 }} {% include '/etc/passwd' %} ${alert(8)} #{7*7} {{ config.__class__ }}",
    "<!-- --> <!--<script> ]]> </title></style></textarea></template>",
    "\x1b[31mred\x1b]8;;https://evil.example\x07 \x9b2J \x7f",
    "\u202eesrever\u2066 \u200f\u061c",
    "&lt;b&gt; &#60;script&#62; &amp; ' ` \\",
    "two\u2028lines\u2029and\x85more",
    "W" * 5000,
]
AMOUNT = 160


@pytest.fixture
def folder(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    return tmp_path


def enter(folder, monkeypatch):
    """Makes `folder` the working folder and copies the other stages' outputs into it."""
    monkeypatch.chdir(folder)
    copy_other_stages()
    write_params(0)


def written(references=REFERENCES, answers=ANSWERS):
    write_inputs(references, answers)
    run()
    return score.PAGE.read_text(encoding="utf-8")


def hostile_inputs():
    """Prompts and answers that carry every hostile text in all of their fields."""
    references = [
        {
            "id": f"h{number}{text[:300]}",
            "prompt": f"{text} {number}",
            "topic": text,
            "kind": text,
            "concept": text,
            "keywords": [{"any": [text, "state"]}, "step"],
            "forbidden": [f"wizard {text}"],
        }
        for number, text in enumerate(HOSTILE)
    ]
    texts = {row["id"]: f"{text} a state" for row, text in zip(references, HOSTILE, strict=True)}
    return references, {name: {id: f"{name}: {text}" for id, text in texts.items()} for name in MODELS}


class Reader(HTMLParser):
    """Collects the tags of a page with their attributes, and the contents of its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.inside, self.blocks = [], None, {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = (tag, dict(attributes).get("type", "")) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.blocks[self.inside] = self.blocks.get(self.inside, "") + data


def data_in(text):
    return json.loads(Reader(text).blocks["script", "application/json"])


# ---- Content ------------------------------------------------------------------------------------------------------------


def test_page_refers_to_nothing_outside(folder):
    reader = Reader(written())
    links = [value for _, attributes in reader.tags for name, value in attributes.items() if name in ("src", "href", "action")]
    assert links and all(link.startswith("#") for link in links)
    assert not re.search(r"url\(|@import|@font-face", reader.blocks["style", ""])
    forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|fetch|XMLHttp"
    assert not re.search(forbidden, reader.blocks["script", ""])
    assert {tag for tag, _ in reader.tags} & {"img", "iframe", "object", "embed", "link", "base", "audio", "video"} == set()


def test_policy_allows_only_the_page_s_script_and_style(folder):
    reader = Reader(written())
    policy = next(each["content"] for tag, each in reader.tags if each.get("http-equiv") == "Content-Security-Policy")
    digests = {kind: digest(reader.blocks[kind, ""]) for kind in ("script", "style")}
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digests['script']}'; style-src 'sha256-{digests['style']}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    assert not any(name.startswith("on") or name == "style" for _, attributes in reader.tags for name in attributes)


def digest(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_page_has_landmarks_one_title_and_labels(folder):
    reader = Reader(written())
    tags = [tag for tag, _ in reader.tags]
    assert all(tags.count(tag) == 1 for tag in ("html", "title", "main", "nav", "footer"))
    assert ("html", {"lang": "en"}) in reader.tags
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    outside_templates = [id for id in ids if id != "question"]
    assert len(set(outside_templates)) == len(outside_templates)
    assert all("aria-label" in attributes for tag, attributes in reader.tags if tag == "svg")
    assert all(attributes["href"][1:] in ids for tag, attributes in reader.tags if tag == "a" and "href" in attributes)


def test_page_shows_every_parameter_pin_and_figure(folder):
    shown = html.unescape(written())
    params = parameters.load(score.PARAMS)
    rows = [row for rows in page.sections(params).values() for row in rows]
    values = {name: value for name, value in rows}
    of_five_stages = set(vars(parameters.read())) - {"unpaired", "kto", "orpo", "reward", "best_of_n", "grpo", "league"}
    assert {name.split(".")[0] for name in values} == of_five_stages and len(values) == len(rows) > 50
    assert all(f"<dt>{name}</dt><dd>{value}</dd>" in shown for name, value in rows)
    assert values["dpo.beta"] == "0.1" and values["models.mini.path"] == "models/base/weights"
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(pin.split(" ;")[0] in shown for pin in pins)
    prepare, sft, dpo = (json.loads(path.read_text()) for path in score.STAGE_REPORTS.values())
    assert set(prepare) == {"sft_data", "dpo_data", "eval_data", "leakage"} and set(prepare["eval_data"]) == {"prompts"}
    assert all(
        f"<td>{page.as_written(count)}</td>" in shown for name in ("sft_data", "dpo_data") for count in prepare[name].values()
    )
    for name, value in {**prepare["leakage"], **sft["sft"], **dpo["dpo"]}.items():
        assert f"<dt>{labels.label(name)}</dt><dd>{page.as_written(value)}</dd>" in shown, name


def test_page_names_parameters_as_params_yaml_does(folder):
    params = parameters.load(score.PARAMS)
    sections = page.sections(params)
    assert list(sections) == ["run", "dpo", "generate", "lora", "models.mini", "prepare", "score", "sft"]
    whole = parameters.read().model_dump()
    for name, value in (row for rows in sections.values() for row in rows):
        in_file = functools.reduce(lambda section, key: section[key], name.split("."), whole)
        assert value == (json.dumps(in_file) if isinstance(in_file, bool | list | None) else str(in_file)), name


def test_page_decides_ties_by_the_exact_threshold(folder):
    """Rates 1/3 apart tie at a threshold of 1/3, though the report rounds it to 0.333333, below 1/3."""
    write_params(1 / 3)
    references = [row | {"keywords": ["state", "step", "chain"]} for row in REFERENCES]
    texts = {"base": "Nothing", "sft": "A state", "dpo": "A state in a step"}
    data = data_in(written(references, {name: dict.fromkeys("abc", text) for name, text in texts.items()}))
    assert [prompt["outcomes"] for prompt in data["prompts"]] == [[0, 0, 1]] * 3
    pairs = json.loads(score.REPORT.read_text())["pairs"]
    assert [pairs[f"{first}_vs_{second}"]["wins"] for first, second in score.PAIRS] == [0, 0, 3]


def test_counts_are_in_the_column_of_their_file(folder):
    """The files have different counts, and leakage has no rows."""
    counts = {"a": {"rows": 3, "own": 0.5}, "b": {"rows": 4, "gap": -1}, "prompts": {"prompts": 9}, "leakage": {"exact": 0}}
    found = page.rows_of_data(counts)
    assert found["files"] == ["a", "b"] and found["leakage"] == {"exact": 0}
    assert found["rows_of_data"] == {"rows": [3, 4], "own": [0.5, ""], "gap": ["", -1]}
    counts = json.loads((ROOT / "tests/fixtures/reports/prepare.json").read_text())
    table = re.search(r"<caption>Rows of data.*?</table>", written(), re.DOTALL)[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert rows[0] == ["count", "SFT examples", "DPO pairs"]
    by_label = {row[0]: row[1:] for row in rows[1:]}
    assert by_label["Train"] == [str(counts[name]["train"]) for name in ("sft_data", "dpo_data")]
    assert by_label["Share of tokens trained on"] == [str(counts["sft_data"]["supervised_share"]), ""]


def test_outcome_bars_have_the_winner_s_colour(folder):
    """dpo won two of four prompts: half the bar has its colour, a quarter that of ties and a quarter that of sft."""
    pairs = {"dpo_vs_sft": {"wins": 2, "ties": 1, "losses": 1}}
    [row] = page.outcome_bars({"pairs": pairs}, MODELS, [("dpo", "sft")])["rows"]
    width = charts.WIDTH
    expected = [("m2", 0, width / 2), ("tie", width / 2, width / 4), ("m1", width * 3 / 4, width / 4)]
    assert [(part["kind"], float(part["x"]), float(part["width"])) for part in row["parts"]] == expected
    assert row["label"] == "dpo against sft: 2 won, 1 tied, 1 lost"


def test_grouped_figures_keep_every_figure_and_put_new_ones_last(folder):
    figures = json.loads(score.STAGE_REPORTS["dpo"].read_text())["dpo"]
    groups = labels.grouped(figures)
    assert {name: value for _, group in groups for name, value in group.items()} == figures
    assert [title for title, _ in groups] == list(labels.DPO_GROUPS)
    assert labels.grouped(figures | {"new": 1})[-1] == ("Other figures", {"new": 1})
    assert labels.grouped({"brier": 0.25}) == [("Preference", {"brier": 0.25})]


def test_measures_include_new_estimates(folder):
    found = {"estimate": 0.25, "low": 0.1, "high": 0.4, "n": 3, "method": "x"}
    rows = page.measures({name: {"precision": found, "hit_rate": found, "health": {}} for name in MODELS}, MODELS)
    assert [row["name"] for row in rows] == ["hit_rate", "precision"]
    assert labels.label("some_new_thing") == "Some new thing"
    assert page.shown_interval(found) == "0.100 to 0.400"
    assert page.shown_interval(found | {"low": -0.1}) == "\u22120.100 to 0.400" and page.shown_figure(-0.25) == "\u22120.250"


def test_page_shows_the_results_of_the_report(folder):
    shown = written()
    report = json.loads(score.REPORT.read_text())
    for name in MODELS:
        assert f"<b>{report['models'][name]['hit_rate']['estimate']:.3f}</b>" in shown
    assert shown.count(f">{html.escape(report['pairs']['dpo_vs_sft']['decision']['verdict'])}</p>") >= 1


def test_page_shows_text_health_and_length_bias(folder):
    """With three prompts nothing can be significant, and the median has no interval; sft is longer than base on two."""
    shown = html.unescape(written())
    report = json.loads(score.REPORT.read_text())
    for name in page.HEALTH:
        assert f'<th scope="row">{labels.label(name)}</th>' in shown
    pair = report["pairs"]["sft_vs_base"]
    assert pair["length"]["median_difference"]["words"]["low"] is None
    more = page.signed(pair["length"]["median_difference"]["words"]["estimate"])
    assert re.search(rf'<th scope="row">sft over base</th><td><b>{re.escape(more)}</b></td>', shown)
    assert f"undefined: {pair['length']['length_controlled']['reason']}" in shown
    assert "Cannot be significant: 3 prompts differ, and it takes 6 even if one model wins them all." in shown


def test_page_shows_likelihood_and_ranking_of_every_model(folder):
    """The values come from the reports of sft and dpo; an undefined value is replaced by its reason."""
    sft, dpo = (json.loads(score.STAGE_REPORTS[stage].read_text())[stage] for stage in ("sft", "dpo"))
    score.STAGE_REPORTS["dpo"].write_text(json.dumps({"dpo": dpo | {"bits_per_byte": None, "kl_per_answer_sampled": None}}))
    shown = html.unescape(written())
    rows = {row[0]: row[1:] for row in table_rows(shown, "Likelihood and ranking of held-out answers")}
    perplexities = (sft["base_perplexity"], sft["perplexity"], dpo["perplexity"])
    assert rows["Perplexity on held-out SFT answers"] == [f"{value:.3f}" for value in perplexities]
    assert rows["Bits per byte of held-out SFT answers"][2] == "undefined: the answers hold no text"
    ranking = score.read_csv(score.RANKING)
    for group, label in (("whole answer", "Ranking accuracy,"), ("per token", "Ranking accuracy per token,")):
        each = [[float(row[key]) for key in ("ranking_accuracy", "low", "high")] for row in ranking if row["group"] == group]
        expected = [f"{estimate:.3f} {low:.3f} to {high:.3f}" for estimate, low, high in each]
        assert rows[f"{label} without a reference"] == expected
    tests = table_rows(shown, "Held-out pairs that a model ranks better or worse than its predecessor")[1:]
    listed = [[*(row[key] for key in ("model", "group", "better", "worse")), p] for row in ranking if (p := shown_p(row["p"]))]
    assert tests == listed and len(listed) == 4
    assert "undefined: the prompts leave no position for an answer" in shown


def shown_p(text):
    return page.p_value(float(text)) if text else ""


def table_rows(shown, caption):
    """The cells of a table as text."""
    table = re.search(rf"<caption>{re.escape(caption)}</caption>.*?</table>", shown, re.DOTALL)[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr>")[1:]]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def test_signed_numbers():
    assert [page.signed(value) for value in (9.5, -3.0, 0.0)] == ["+9.5", "\u22123", "0"]


def test_data_has_every_prompt_and_answer_in_parts(folder):
    data = data_in(written())
    assert [prompt["id"] for prompt in data["prompts"]] == ["a", "b", "c"]
    for index, name in enumerate(MODELS):
        texts = ["".join(prompt["answers"][index]["parts"]) for prompt in data["prompts"]]
        assert texts == [answer_row(id, text)["answer"] for id, text in ANSWERS[name].items()]
    first = data["prompts"][0]
    assert first["answers"][1]["parts"][:4] == ["A ", "state", " in a ", "step"]
    assert first["outcomes"] == [1, -1, 0] and first["kind"] == "new wording"


def test_data_names_each_model_once(folder):
    """A blind vote needs the map from aliases to names; nothing else may name a model."""
    block = Reader(written()).blocks["script", "application/json"]
    without_texts = json.loads(block) | {"prompts": []}
    assert all(json.dumps(without_texts).count(f'"{name}"') == 1 for name in MODELS)


def test_a_page_of_usual_size_is_small(folder):
    """152 prompts with three answers of 160 words."""
    answer = " ".join(["probability"] * AMOUNT)
    references = [{**REFERENCES[0], "id": f"p{number}", "prompt": f"Prompt {number}"} for number in range(152)]
    text = written(references, {name: {row["id"]: f"{answer} {row['id']} {name}" for row in references} for name in MODELS})
    assert len(text.encode()) < 2_000_000


def test_page_has_no_time_and_no_path(folder):
    text = written()
    assert str(folder) not in text and str(ROOT) not in text
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b|\d\d:\d\d:\d\d", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_inert_json_ends_no_block_and_keeps_its_value(text):
    made = page.inert_json({"text": text})
    assert not re.search("[<>&\u2028\u2029]", made)
    assert json.loads(made) == {"text": text}


def test_hostile_text_adds_no_tag(folder):
    """A page of hostile texts has the same kinds of tags and attributes as a page of harmless ones."""
    references, answers = hostile_inputs()
    keys = ("id", "topic", "kind", "concept", "prompt")
    harmless = [{**row, **dict.fromkeys(keys, f"word{number}")} for number, row in enumerate(references)]
    calm = {name: {row["id"]: "a state" for row in harmless} for name in MODELS}
    both = (references, answers), (harmless, calm)
    shapes = [[(tag, sorted(attributes)) for tag, attributes in Reader(written(*each)).tags] for each in both]
    tags = [{tag for tag, _ in shape} for shape in shapes]
    assert tags[0] == tags[1]
    assert {name for _, names in shapes[0] for name in names} == {name for _, names in shapes[1] for name in names}


def test_page_has_no_control_or_bidi_character(folder):
    """Not even its source has one, so a terminal that displays the file is safe, and no line reads backwards."""
    text = written(*hostile_inputs())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)
    assert any("\u202e" in prompt["prompt"] for prompt in data_in(text)["prompts"])


def test_hostile_parameters_and_metrics_are_escaped(folder):
    path = score.STAGE_REPORTS["dpo"]
    metrics = json.loads(path.read_text())["dpo"]
    path.write_text(json.dumps({"dpo": metrics | {"health": HOSTILE[0]}}))
    text = score.RANKING.read_text().replace("whole answer", HOSTILE[0].replace(",", ""))
    score.RANKING.write_text(text)
    score.REQUIREMENTS.write_text(f"{HOSTILE[2]}==1\n")
    shown = written()
    assert HOSTILE[0] not in shown and html.escape(HOSTILE[0]) in shown
    assert "<img" not in shown


# ---- Marks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "groups", "marked"),
    [
        ("A state, a step.", ["step", "state"], [("state", 1), ("step", 0)]),
        ("The **mean** value", ["mean value"], [("mean** value", 0)]),
        ("Éclair and MEAN", ["eclair", "mean"], [("Éclair", 0), ("MEAN", 1)]),
        ("mean value", ["mean value", "mean"], [("mean value", 0)]),
        ("nothing", ["mean"], []),
        ("", ["mean"], []),
        ("two  means", [{"any": ["mean"], "match": "inflect"}], [("means", 0)]),
        ("42 or 142", [{"any": ["42"], "match": "number"}], [("42", 0)]),
    ],
)
def test_marks_are_positions_in_the_original_text(text, groups, marked):
    assert [(text[start:end], number) for start, end, number in marks(text, groups)] == marked


def test_marks_skip_an_echo_of_the_prompt():
    prompt = "Please explain how a state of the chain is left"
    text = f"{prompt}? A state is naïve."
    assert [text[start:end] for start, end, _ in marks(text, ["state"], prompt)] == ["state"]
    assert marks(text, ["state"], prompt)[0][0] > len(prompt)


@pytest.mark.slow
def test_marks_of_a_long_loop_are_quick():
    """A long loop, as a degenerate model writes it, whose plain form differs from the text."""
    assert len(marks("the mean é *is* " * 450, ["mean"])) == 450


def test_parts_join_to_the_text():
    assert page.marked_parts("a state here", [(2, 7, 0)]) == ["a ", "state", " here"]
    assert page.marked_parts("", []) == [""]


# ---- Charts -------------------------------------------------------------------------------------------------------------


def test_ticks_are_round_numbers():
    drawn = charts.lines([(0, "a", -0.53), (57, "a", 1.36)])
    assert [label for _, label in drawn["y"]] == ["−1.0", "−0.5", "0.0", "0.5", "1.0", "1.5"]
    assert [label for _, label in drawn["x"]] == ["0", "20", "40", "60"]
    assert drawn["series"][0]["dots"][0][0] == f"{charts.LEFT:.1f}"


def test_lines_draw_a_flat_curve_and_a_single_point():
    assert charts.lines([(1, "a", 2.0)])["series"][0]["dots"] != []
    flat = [label for _, label in charts.lines([(0, "a", 0.0), (9, "a", 0.0)])["y"]]
    assert flat == ["−0.6", "−0.4", "−0.2", "0.0", "0.2", "0.4", "0.6"]


def test_intervals_draw_a_dot_without_an_interval():
    drawn = charts.intervals([{"group": "g", "model": "m", "estimate": 0.5, "low": None, "high": None, "n": 1}])
    assert drawn["rows"][0]["low"] is None and drawn["labels"][0]["text"] == "g (n = 1)"


# ---- In a browser -------------------------------------------------------------------------------------------------------

INJECTED = "window.injected = 0; window.opened = []; window.open = (url) => window.opened.push(url);"


@pytest.fixture(scope="module")
def chromium():
    with browser.started() as opened:
        yield opened


@pytest.fixture
def new_tab(chromium):
    """new_tab(width=1400, …) opens a tab with empty storage, nothing recorded, and light colours."""
    with contextlib.ExitStack() as opened:

        def make(**settings):
            tab = browser.Tab(chromium, **settings)
            opened.callback(tab.close)
            tab.before_every_page(INJECTED)
            return tab

        yield make


@pytest.fixture
def tab(new_tab):
    """A wide window."""
    return new_tab()


@pytest.fixture
def phone(new_tab):
    return new_tab(width=390, height=844)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The paths of a page of small answers and of a page of hostile ones."""
    with pytest.MonkeyPatch.context() as patch:
        paths = {}
        for name, inputs in {"calm": (REFERENCES, ANSWERS), "hostile": hostile_inputs()}.items():
            folder = tmp_path_factory.mktemp(name)
            enter(folder, patch)
            written(*inputs)
            paths[name] = folder / score.PAGE
        yield paths


def ids_shown(tab):
    return tab.evaluate("[...document.querySelectorAll('article.prompt')].map((each) => each.id)")


def texts_shown(tab, selector):
    return tab.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)")


def choose(tab, id, value):
    tab.evaluate(
        f"{{ const field = document.getElementById({json.dumps(id)}); field.value = {json.dumps(value)}; "
        "field.dispatchEvent(new Event('input', {bubbles: true})); }"
    )


def quiet(tab):
    return (tab.dialogs, tab.errors, browser.outside(tab.requests)) == ([], [], [])


@needs_browser
def test_tab_records_what_a_page_does(tab, tmp_path):
    """The tests below rely on this: they assert that nothing was recorded."""
    script = "alert('one'); fetch('http://127.0.0.1:1/two').catch(() => 0); setTimeout(() => { throw new Error('three'); })"
    refused = "<meta http-equiv=Content-Security-Policy content=\"img-src 'none'\"><img src='http://127.0.0.1:1/four'>"
    (tmp_path / "page.html").write_text(f"{refused}<script>{script}</script>", encoding="utf-8")
    tab.open(tmp_path / "page.html")
    tab.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert tab.dialogs == ["one"] and "http://127.0.0.1:1/two" in browser.outside(tab.requests)
    for word in ("three", "Failed to load resource", "Content Security Policy"):
        assert [error for error in tab.errors if word in error], (word, tab.errors)
    assert not quiet(tab)


@needs_browser
def test_hostile_text_does_nothing_in_a_browser(tab, pages):
    tab.open(pages["hostile"])
    tab.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert quiet(tab), (tab.dialogs, tab.errors, tab.requests)
    found = set(tab.evaluate("[...document.querySelectorAll('#report *')].map((each) => each.localName)"))
    assert found & {"script", "img", "iframe", "link", "object", "embed", "style", "base", "meta"} == set()
    inside = set(tab.evaluate("[...document.querySelectorAll('#prompts *')].map((each) => each.localName)"))
    assert inside <= {"article", "h3", "h4", "p", "a", "span", "div", "ul", "li", "mark"}
    names = tab.evaluate("[...document.querySelectorAll('*')].flatMap((each) => each.getAttributeNames())")
    assert not [name for name in names if name.startswith("on") or name in ("style", "src", "srcdoc")]
    links = tab.evaluate("[...document.querySelectorAll('a')].map((each) => each.getAttribute('href'))")
    assert all(link.startswith("#") for link in links)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1400


@needs_browser
def test_hostile_text_is_displayed_literally(tab, pages):
    tab.open(pages["hostile"])
    hidden = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
    expected = [re.sub(hidden, "\ufffd", f"{text} {number}") for number, text in enumerate(HOSTILE)]
    assert texts_shown(tab, "article.prompt > h3") == expected
    assert len(texts_shown(tab, "#prompts .text")) == len(HOSTILE) * 3
    assert f"dpo: {HOSTILE[0]} a state" in texts_shown(tab, "#prompts .text")[2]


@needs_browser
def test_hostile_text_does_nothing_in_a_blind_vote(tab, pages):
    tab.open(pages["hostile"], "#vote")
    begin(tab)
    for _ in range(len(HOSTILE)):
        tab.press("3")
    assert "13 of 13 prompts" in tab.evaluate("document.getElementById('summary').textContent")
    assert quiet(tab) and tab.evaluate("document.querySelectorAll('main img, main script, main iframe').length") == 0


@needs_browser
def test_policy_blocks_injected_code(tab, pages):
    """Even if text became markup, the browser would block inline scripts, handlers, images and requests."""
    tab.open(pages["calm"])
    tab.evaluate(
        "{ const script = document.createElement('script'); try { script.textContent = 'window.injected = 1'; } catch {} "
        "document.body.append(script); const image = new Image(); image.src = 'https://evil.example/x.png'; "
        "try { image.setAttribute('onerror', 'window.injected = 2'); } catch {} document.body.append(image); }"
    )
    tab.evaluate("fetch('https://evil.example/').catch(() => 0)")
    tab.evaluate("new Promise((done) => setTimeout(done, 200))")
    assert tab.evaluate("window.injected") == 0
    assert any("Content Security Policy" in error for error in tab.errors)
    markup = "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return String(error); } })()"
    assert "TypeError" in tab.evaluate(markup)


@needs_browser
@pytest.mark.parametrize(
    ("field", "value", "left"),
    [
        ("search", "MEAN variance", ["p-b"]),
        ("search", "no such words", []),
        ("topic", "0", ["p-a", "p-b"]),
        ("kind", "0", ["p-b"]),
        ("outcome", "2 0", ["p-a"]),
        ("outcome", "0 -1", ["p-c"]),
    ],
)
def test_filters_leave_the_prompts_that_match(tab, pages, field, value, left):
    """Topics and kinds are in alphabetical order; pair 2 is dpo over base, which tie on prompt a."""
    tab.open(pages["calm"])
    choose(tab, field, value)
    assert ids_shown(tab) == left
    assert tab.evaluate("document.getElementById('count').textContent") == f"{len(left)} of 3 prompts"
    tab.evaluate("document.querySelector('#filters [type=reset]').click()")
    tab.evaluate("new Promise((done) => setTimeout(done, 30))")
    assert ids_shown(tab) == ["p-a", "p-b", "p-c"] and quiet(tab)


@needs_browser
def test_keys_move_between_prompts(tab, pages):
    tab.open(pages["calm"])
    here = "document.activeElement.id"
    for key, id in (("j", "p-a"), ("j", "p-b"), ("ArrowRight", "p-c"), ("j", "p-c"), ("k", "p-b"), ("ArrowLeft", "p-a")):
        tab.press(key)
        assert (tab.evaluate(here), tab.evaluate("location.hash")) == (id, f"#{id}")
    tab.press("/")
    assert tab.evaluate(here) == "search"
    tab.press("j")
    assert tab.evaluate(here) == "search" and quiet(tab)


@needs_browser
def test_deep_link_opens_its_prompt_despite_filters(tab, pages):
    tab.open(pages["calm"], "#p-c")
    assert tab.evaluate("document.activeElement.id") == "p-c"
    choose(tab, "search", "variance")
    tab.evaluate("location.hash = '#p-a'")
    tab.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert tab.evaluate("document.activeElement.id") == "p-a"
    for name in ("%zz", "p-nothing", "constructor", "p-%22%3E%3Cimg"):
        tab.open(pages["calm"], f"#{name}")
        assert quiet(tab)


@needs_browser
def test_named_ideas_are_marked(tab, pages):
    tab.open(pages["calm"])
    assert texts_shown(tab, "#p-a .answer:nth-child(2) mark") == ["state", "step"]
    assert texts_shown(tab, "#p-b .answer:nth-child(2) .ideas li") == ["✓ mean", "– variance"]


@needs_browser
def test_colours_follow_the_system_until_chosen(tab, pages):
    paper = "getComputedStyle(document.body).backgroundColor"
    tab.open(pages["calm"])
    light = tab.evaluate(paper)
    tab.prefer("dark")
    dark = tab.evaluate(paper)
    assert light != dark
    tab.evaluate("document.getElementById('theme').click()")
    assert tab.evaluate(paper) == light
    tab.open(pages["calm"])
    assert tab.evaluate(paper) == light, "the choice is kept"


@needs_browser
@pytest.mark.parametrize("name", ["calm", "hostile"])
def test_page_fits_a_phone(phone, pages, name):
    phone.open(pages[name])
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    phone.open(pages[name], "#vote")
    begin(phone)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390


@needs_browser
def test_verdicts_stay_visible_on_a_phone(phone, pages):
    phone.open(pages["hostile"], "#vote")
    begin(phone)
    bottom = "document.querySelector('.verdicts button:last-child').getBoundingClientRect().bottom"
    tall = "document.querySelector('.answers').getBoundingClientRect().height"
    for _ in HOSTILE[1:]:
        assert phone.evaluate(bottom) <= 844
        if phone.evaluate(tall) > 844:
            return
        phone.press("3")
    raise AssertionError("no pair of answers was longer than the window")


@needs_browser
@pytest.mark.skipif("AXE" not in os.environ, reason="AXE names no axe.min.js (npm pack axe-core)")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing_serious(new_tab, pages, width, dark):
    tab = new_tab(width=width, height=900, color_scheme="dark" if dark else "light", bypass_csp=True)
    for steps in ([], ["vote"], ["vote", "begin"]):
        tab.open(pages["calm"], "#vote" if steps else "")
        tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        if "begin" in steps:
            begin(tab)
        tab.evaluate(Path(os.environ["AXE"]).read_text(encoding="utf-8"))
        violations = "found.violations.map((each) => [each.impact, each.id, each.nodes[0].html])"
        found = tab.evaluate(f"axe.run().then((found) => {violations})")
        assert [each for each in found if each[0] in ("serious", "critical")] == []
        assert found == []


# ---- The blind vote, in a browser ---------------------------------------------------------------------------------------

WORD = r"(?<![a-z0-9])({})(?![a-z0-9])".format("|".join(MODELS))
# All cells except the policy, since its base-uri is not a model.
NEVER_NAMED = (
    "document.documentElement.outerHTML.replace(/base-uri/, '') + '\\n' + "
    "JSON.stringify({...localStorage}) + document.title + location.href"
)


def begin(tab, rater="ann", seed="7", pair="1"):
    """Pair 1 is dpo and sft."""
    values = json.dumps({"rater": rater, "seed": seed, "pair": pair})
    tab.evaluate(
        f"for (const [id, value] of Object.entries({values})) document.getElementById(id).value = value; "
        "document.querySelector('#setup .primary').click()"
    )


def exported(tab):
    """The name and text of the file that the export button would save."""
    return tab.evaluate(
        "(() => { let kept; const make = URL.createObjectURL; "
        "URL.createObjectURL = (blob) => { kept = blob; return 'blob:none'; }; "
        "const click = HTMLAnchorElement.prototype.click; let name; "
        "HTMLAnchorElement.prototype.click = function () { name = this.download; }; "
        "document.querySelector('[data-do=export]').click(); "
        "URL.createObjectURL = make; HTMLAnchorElement.prototype.click = click; "
        "return kept.text().then((text) => ({name, text})); })()"
    )


@pytest.fixture
def ballots(tab, pages):
    """The calm page, ready to vote."""
    tab.open(pages["calm"], "#vote")
    return tab


@needs_browser
def test_vote_hides_model_names_everywhere(ballots):
    begin(ballots)
    for verdict in ("1", "x", "b"):
        assert re.findall(WORD, ballots.evaluate(NEVER_NAMED).lower()) == []
        assert ballots.evaluate("document.querySelectorAll('.m0, .m1, .m2, mark').length") == 0
        ballots.press(verdict)
    assert re.findall(WORD, ballots.evaluate(NEVER_NAMED).lower()) == []
    ballots.evaluate("document.querySelector('[data-do=end]').click()")
    assert "dpo is better" in ballots.evaluate("document.getElementById('tally').textContent")
    assert quiet(ballots)


@needs_browser
def test_vote_shuffles_sides(ballots, pages):
    """Over several seeds, each model appears on the left of each prompt."""
    lefts = set()
    for seed in range(6):
        ballots.open(pages["calm"], "#vote")
        begin(ballots, rater=f"r{seed}", seed=str(seed))
        ballots.press("1", "1", "1")
        for row in map(json.loads, exported(ballots)["text"].splitlines()):
            lefts.add((row["id"], row["left_model"]))
    assert lefts == {(id, name) for id in "abc" for name in ("dpo", "sft")}


@needs_browser
def test_votes_survive_a_reload_and_can_be_undone(ballots, pages):
    begin(ballots)
    progress = "document.getElementById('progress').textContent"
    ballots.evaluate("document.getElementById('comment').value = 'a good one'")
    ballots.evaluate("document.querySelector('[data-verdict=A]').click()")
    asked = ballots.evaluate("document.getElementById('question').textContent")
    assert ballots.evaluate(progress) == "Prompt 2 of 3"
    ballots.open(pages["calm"], "#vote")
    begin(ballots, seed="99")
    assert ballots.evaluate(progress) == "Prompt 2 of 3"
    assert ballots.evaluate("document.getElementById('question').textContent") == asked, "the seed of the beginning holds"
    ballots.press("u")
    assert ballots.evaluate(progress) == "Prompt 1 of 3"
    assert ballots.evaluate("document.getElementById('comment').value") == "a good one"
    ballots.press("u", "Enter", "j")
    assert ballots.evaluate(progress) == "Prompt 1 of 3" and quiet(ballots)


@needs_browser
def test_keys_in_the_comment_are_not_votes(ballots):
    begin(ballots)
    ballots.evaluate("document.getElementById('comment').focus()")
    ballots.press("a", "1", "t")
    assert ballots.evaluate("document.getElementById('progress').textContent") == "Prompt 1 of 3"
    assert ballots.evaluate("document.getElementById('comment').value") == "a1t"


@needs_browser
def test_exported_votes_pass_the_check_and_make_pairs(ballots, pages, monkeypatch):
    begin(ballots, rater="Ann <b>")
    ballots.evaluate("document.getElementById('comment').value = 'clear\\nand short'")
    ballots.evaluate("document.querySelector('[data-verdict=A]').click()")
    ballots.press("b", "t")
    made = exported(ballots)
    assert re.fullmatch(r"votes-ann-b--[0-9a-f]{8}\.jsonl", made["name"])
    monkeypatch.chdir(pages["calm"].parent.parent)
    Path("votes.jsonl").write_text(made["text"], encoding="utf-8")
    judged = votes.read_run()
    found, problems = votes.read_votes(["votes.jsonl"], judged.run, judged)
    assert problems == [] and [vote.verdict for vote in found] == ["A", "B", "tie"]
    assert {(vote.rater, vote.seed) for vote in found} == {("Ann <b>", 7)}
    assert json.loads(made["text"].splitlines()[0])["comment"] == "clear\nand short"
    assert len(votes.preference_pairs(found)[0]) == 2


@needs_browser
def test_vote_skips_equal_answers(ballots, pages, tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    written(answers=ANSWERS | {"dpo": ANSWERS["dpo"] | {"a": ANSWERS["sft"]["a"]}})
    ballots.open(tmp_path / score.PAGE, "#vote")
    begin(ballots)
    assert ballots.evaluate("document.getElementById('progress').textContent") == "Prompt 1 of 2"


@needs_browser
def test_vote_works_without_browser_storage(tab, pages):
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }, configurable: true});"
    tab.before_every_page(refuse)
    tab.open(pages["calm"], "#vote")
    begin(tab)
    assert tab.evaluate("document.getElementById('unstored').hidden") is False
    tab.press("1", "2")
    assert len(exported(tab)["text"].splitlines()) == 2 and quiet(tab)


@needs_browser
def test_vote_starts_over_from_invalid_storage(ballots, pages):
    run = data_in(pages["calm"].read_text(encoding="utf-8"))["run"][:16]
    for spoilt in ("nonsense", "null", "[]", '{"ann\\n": 1}'):
        ballots.evaluate(f"localStorage.setItem('votes-{run}', {json.dumps(spoilt)})")
        ballots.open(pages["calm"], "#vote")
        begin(ballots)
        assert ballots.evaluate("document.getElementById('progress').textContent") == "Prompt 1 of 3" and quiet(ballots)


@needs_browser
def test_back_leaves_the_vote_and_the_skip_link_does_not(tab, pages):
    tab.open(pages["calm"])
    tab.evaluate("document.getElementById('vote').click()")
    begin(tab, rater="eve")
    for hash, voting in (("#main", True), ("#results", False)):
        tab.evaluate(f"location.hash = '{hash}'; new Promise((done) => setTimeout(done, 50))")
        assert (tab.evaluate("document.getElementById('report') === null"), quiet(tab)) == (voting, True)


@needs_browser
def test_leaving_the_vote_restores_the_report(ballots):
    begin(ballots)
    ballots.evaluate("document.querySelector('[data-do=leave]').click()")
    assert ids_shown(ballots) == ["p-a", "p-b", "p-c"] and ballots.evaluate("document.title") == "Post-training report"
    ballots.press("j")
    assert ballots.evaluate("document.activeElement.id") == "p-a"
