"""The report and the dataset page: complete in themselves, safe, and there whatever is missing."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.cli import main
from flows.commands.show import image_text
from flows.pages import charts
from flows.pages.curves import Curve, lines
from flows.pages.page import figure, thumbnail
from flows.pages.report_scores import score_table
from flows.pages.report_training import training_curves
from pipeline.engine.materialize import Outcome
from pipeline.engine.runs import record_run
from pipeline.recipe.presets import preset
from storage.store.artifacts import ArtifactStore
from storage.store.published import add_entry, read_history
from storage.store.runs import read_runs
from tests.support.small_store import bare_run, build_store, image, torn_image
from tests.support.store_fixtures import add, payload


class Page(HTMLParser):
    """What a browser would find on a page: its words, and every address it would ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.scripts: dict[str, list[str]] = {"": []}  # by type
        self._script: str | None = None
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self._script = dict(attrs).get("type") or ""
        self.addresses += [v or "" for name, v in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.words += f" {data}"
        else:
            self.scripts.setdefault(self._script, []).append(data)

    def records(self) -> list[dict[str, Any]]:
        """Return what the dataset's page knows of its images."""
        return json.loads(self.scripts["application/json"][-1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return build_store(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def report(store: ArtifactStore) -> str:
    main(["report", "--store", store.uri])
    run = read_runs(store)[0]["run"]
    return Path(store.uri, "reports", f"{run}.html").read_text()


@pytest.fixture(scope="module")
def dataset(store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("out") / "deep" / "dataset.html"
    main(["browse", "--store", store.uri, "--output", str(path), "--images", "9"])
    main(["browse", "--store", store.uri, "--images", "9"])
    assert Path(store.uri, "reports", "dataset.html").read_text() == path.read_text()
    return path.read_text()


@pytest.mark.parametrize("name", ["report", "dataset"])
def test_a_page_asks_for_nothing_and_runs_its_own_scripts_only(
    name: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(name)
    page = Page(text)
    assert {address[:5] for address in page.addresses} <= {"data:"} | {
        address[:5] for address in page.addresses if address.startswith("#")
    }
    assert "link" not in page.tags
    assert "url(" not in text.partition("<body>")[0]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    allowed = policy[1].partition("script-src ")[2]
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in allowed
    hashes = [hashlib.sha256(script.encode()).digest() for script in page.scripts[""]]
    assert allowed.split() == [f"'sha256-{base64.b64encode(h).decode()}'" for h in hashes]
    assert page.tags.count("script") == sum(map(len, page.scripts.values()))


def test_every_chart_has_a_still_picture_and_data_that_a_browser_can_read(report: str) -> None:
    page = Page(report)
    specs = [json.loads(text) for text in page.scripts["application/json"]]
    assert len(specs) == report.count('<figure class="chart"') > 5
    stills = [uri for uri in page.addresses if uri.startswith("data:image/svg+xml")]
    assert len(stills) == len(specs)
    assert all("url" not in spec["data"] for spec in specs)


@pytest.mark.parametrize("name", ["report", "dataset"])
def test_images_and_drawings_can_be_decoded(name: str, request: pytest.FixtureRequest) -> None:
    uris = [uri for uri in Page(request.getfixturevalue(name)).addresses if uri[:5] == "data:"]
    kinds = {uri.partition(";")[0] for uri in uris}
    assert kinds == {"data:image/svg+xml", "data:image/jpeg"}
    if name == "dataset":
        uris += [row["image"] for row in Page(request.getfixturevalue(name)).records()]
    for uri in uris:
        data = base64.b64decode(uri.partition(",")[2], validate=True)
        if "svg" not in uri[:20]:
            Image.open(io.BytesIO(data)).verify()
        else:
            assert b"<svg" in data
            assert b'href="http' not in data


def test_text_of_the_data_is_never_markup(report: str, dataset: str) -> None:
    assert "<script>alert" not in dataset
    assert "&lt;script&gt;alert(1)" in dataset
    assert "One <b>" not in dataset + report
    captions = [text for row in Page(dataset).records() for text in row["captions"]]
    assert any(text.startswith("One <b>") for text in captions)


def test_the_report_tells_conditions_floors_and_what_the_image_is_worth(report: str) -> None:
    words = Page(report).words
    for expected in ("real", "shuffled", "blind", "most_frequent", "CIDEr-D of captions"):
        assert expected in words
    assert re.search(r"Share of answers right: real beats blind by \+0\.\d+ \[", words)
    for title in ("Best captions", "Worst captions", "Wrong answers", "Right answers"):
        assert title in words
    assert "Share of each expert (finetuning)" in words
    assert "caption refusal 1" in words


def test_what_was_measured_once_is_a_figure_and_not_a_chart() -> None:
    steps = [
        {"stage": "pretrain", "metric": metric, "step": step, "value": 0.5}
        for metric in ("loss", "val_nll", "expert_0_usage", "gradient_norm", "learning_rate_lm")
        for step in (1, 2)
    ]
    once = {"stage": "pretrain", "metric": "tokens_per_second", "step": 2, "value": 300.0}
    found = training_curves([*steps, once])
    assert [chart.title for chart in found.losses] == ["Loss (pretraining)"]
    titles = ["Share of each expert (pretraining)", "Gradient norm (pretraining)"]
    assert [chart.title for chart in found.others] == titles
    assert found.figures == [["pretraining", "Tokens per second", 300.0]]


def test_the_report_shows_where_the_model_looked(report: str) -> None:
    assert report.count('class="card looked"') == 12  # each of the test images once
    part = report.partition('id="looked">')[2].partition("<h2")[0]
    page = Page(part)
    assert "square row 1, column 1, 1.5 nats" in page.words
    uris = [uri for uri in page.addresses if uri.startswith("data:image/jpeg")]
    assert len(uris) == 6 * 3 + 6  # three words of a caption, the one of an answer
    image = Image.open(io.BytesIO(base64.b64decode(uris[0].partition(",")[2])))
    assert max(image.size) == 144


@pytest.mark.parametrize("order", [("real", "blind"), ("blind", "real")])
def test_the_table_counts_what_the_right_images_were_asked(order: tuple[str, str]) -> None:
    fixed = {"stage": "finetune", "split": "test", "value": 0.5, "low": None, "high": None}
    counts = {"real": 1200, "blind": 30}
    rows = [
        {**fixed, "metric": "answer_accuracy", "condition": each, "count": counts[each]}
        for each in order
    ]
    baseline = {**fixed, "metric": "cider_d", "condition": "most_frequent", "count": 7}
    columns, cells = score_table([*rows, baseline])
    assert columns == ["model", "metric", "real", "blind", "most_frequent", "n"]
    assert [line[-1] for line in cells] == ["1,200", "7"]


def test_the_report_tells_what_changed_since_the_run_before(
    store: ArtifactStore, report: str
) -> None:
    before = read_runs(store)[1]["run"]
    words = Page(report).words
    assert f"Against run {before}" in words
    assert "finetune.epochs 3 4" in words
    score = r"0\.\d+ \[0\.\d+, \d\.\d+\]"
    gain = r"(better|within noise) \+0\.\d+ \[0\.\d+, 0\.\d+\]"
    moved = rf"answers right {gain} {score} {score}"
    every = words.index("All differences")
    assert re.search(moved, words[words.index(f"Against run {before}") : every])
    tuned = re.search(r"finetune/test/real/answer_accuracy 0\.\d+ 0\.\d+ \+0\.\d+", words)
    assert tuned is not None
    assert every < tuned.start() < words.index("pretrain/test/real/figure_00")
    assert "pretrain/test/real/figure_89" in words


def test_the_report_says_what_the_gate_decided(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    bundle = add(store, tmp_path, {"bundle.json": b"{}"}, payload("publish"))
    run = record_run(store, preset("demo"), [Outcome("publish", "made", bundle, 1.0)])

    def words_after(action: str, reason: str, digest: str = bundle.digest) -> str:
        known = {"run": "other", "fingerprint": bundle.fingerprint, "against": ""}
        add_entry(store, read_history(store), action=action, reason=reason, digest=digest, **known)
        page = tmp_path / "page.html"
        main(["report", "--store", store.uri, "--output", str(page)])
        return Page(page.read_text()).words.partition("Scores")[0]

    assert "not judged" in words_after("published", "it helps", digest="another")
    assert "not published: it sees nothing" in words_after("refused", "it sees nothing")
    forced = words_after("forced", "it sees nothing")
    assert run in forced
    assert "published anyway: it sees nothing" in forced
    assert "since then run other was published" in words_after("published", "", digest="third")


def test_costs_are_told_with_a_rate(report: str) -> None:
    assert "features made 2.5 8.0 images/s" in Page(report).words


def test_the_stages_are_drawn_with_what_they_took(report: str) -> None:
    drawn = re.search(r"<svg viewBox=.*?</svg>", report, re.DOTALL)
    assert drawn
    assert drawn[0].count("<rect") == 7
    assert re.search(r"features made 2.5 s · \S+ MB \w{12} ", Page(drawn[0]).words + " ")


def test_equal_figures_give_equal_drawings() -> None:
    curves = [Curve("a", [1, 2, 3], [0.5, 0.2, 0.1]), Curve("b", [1, 3], [0.1, 0.4])]
    assert lines("t", curves, "x", "y") == lines("t", curves, "x", "y")


def test_a_long_curve_keeps_its_ends_and_what_is_no_number_is_left_out() -> None:
    ys = [0.5] * 5000
    ys[1234], ys[4321], ys[77] = 9.0, -9.0, float("nan")
    drawn = lines("t", [Curve("a", range(5000), ys)], "x", "y").spec["data"]["values"]
    assert len(drawn) <= 700
    assert {(1234, 9.0), (4321, -9.0)} <= {(row["x"], row["y"]) for row in drawn}
    assert 77 not in {row["x"] for row in drawn}
    figures = [charts.Estimate("a", 1.0, 0.5, 2.0), charts.Estimate("b", float("inf"))]
    assert [r["label"] for r in charts.bars("t", figures).spec["data"]["values"]] == ["a"]
    assert charts.bars("t", figures[1:]).uri.startswith("data:image/svg+xml")


def test_a_histogram_counts_every_value_once() -> None:
    wide = {float(n): 1 for n in range(0, 1000, 3)}
    for counts in ({"a": {1.0: 4, 3.0: 2}}, {"a": wide, "b": {5.0: 7}}, {"a": {0.5: 3}}):
        rows = charts.histogram("t", counts, "x").spec["data"]["values"]
        assert sum(r["count"] for r in rows) == sum(sum(each.values()) for each in counts.values())
        assert all(row["from"] < row["to"] for row in rows)
    whole = charts.histogram("t", {"a": {1.0: 4, 3.0: 2}}, "x").spec["data"]["values"]
    assert [(row["of"], row["count"]) for row in whole] == [("1", 4), ("3", 2)]


def drawn(spec: dict[str, Any]) -> dict[str, str]:
    """Return the colour of each run of a chart of curves."""
    scale = spec["layer"][0]["encoding"]["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


def test_curves_of_other_runs_lie_in_the_same_chart_and_keep_their_colours() -> None:
    def rows(**values: float) -> list[dict[str, Any]]:
        return [
            {"stage": stage, "metric": metric, "step": step, "value": value / step}
            for stage, value in values.items()
            for metric in ("loss", "val_nll", "expert_0_usage")
            for step in (1, 2)
        ]

    own = rows(pretrain=1.0, finetune=2.0)
    others = {"wide": rows(pretrain=1.0, finetune=3.0), "long": rows(pretrain=4.0, finetune=5.0)}
    found = training_curves(own, others)
    assert found.same == [("pretraining", "wide")]
    pretraining, finetuning = (drawn(chart.spec) for chart in found.losses)
    assert list(pretraining) == ["this run", "long"]
    assert list(finetuning) == ["this run", "wide", "long"]
    assert pretraining.items() <= finetuning.items()
    assert len(set(finetuning.values())) == 3
    runs = {row["run"] for row in found.losses[1].spec["data"]["values"]}
    assert runs == {"this run", "wide", "long"}


def test_a_report_is_drawn_against_chosen_runs(store: ArtifactStore, tmp_path: Path) -> None:
    now, before = (record["run"] for record in read_runs(store)[:2])
    path = tmp_path / "page.html"
    main(["report", before, "--against", now, "--store", store.uri, "--output", str(path)])
    page = Page(path.read_text())
    assert f"Against run {now}" in page.words
    assert f"The pretraining is the same as in run {now}" in page.words
    specs = [json.loads(text) for text in page.scripts["application/json"]]
    loss = next(spec for spec in specs if spec["description"] == "Loss (finetuning)")
    assert list(drawn(loss)) == ["this run", now]


def test_a_run_that_has_only_images_still_has_both_pages(tmp_path: Path) -> None:
    store = bare_run(tmp_path)
    for command, words in (
        ("report", "This run has no scores"),
        ("browse", "20 images"),
    ):
        path = tmp_path / f"{command}.html"
        main([command, "--store", store.uri, "--output", str(path)])
        assert words in Page(path.read_text()).words


def test_a_run_of_nothing_has_a_report(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    record_run(store, preset("demo"), [])
    main(["report", "--store", store.uri, "--output", str(tmp_path / "page.html")])
    words = Page((tmp_path / "page.html").read_text()).words
    assert "This run has no scores" in words
    assert "This is the first run of its store" in words


@pytest.mark.parametrize(
    ("command", "message"),
    [(["report"], "0 runs match 'latest'"), (["browse"], "holds no images yet")],
)
def test_an_empty_store_is_told_in_one_line(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--store", str(tmp_path / "none"), "--output", str(tmp_path / "x.html")])
    assert message in capsys.readouterr().err


def test_the_dataset_page_shows_as_many_images_as_asked(dataset: str) -> None:
    page = Page(dataset)
    words, records = page.words, page.records()
    assert "9 of them" in words
    assert [len(row["talks"]) for row in records] == [1] * 9
    assert {row["split"] for row in records} == {"train", "validation", "test"}
    tested = [row for row in records if row["split"] == "test"]
    conditions = {said["condition"] for row in tested for said in row["predictions"]}
    assert conditions == {"real", "shuffled", "blind"}
    assert {box["name"] for row in records for box in row["boxes"]} == {"square", "wall"}
    assert "caption: refusal (1)" in words
    assert "image: broken image (1)" in words
    assert "no image to show" in words


def test_a_drop_about_a_good_image_is_shown_with_it(dataset: str) -> None:
    card = dataset.partition("caption: refusal (1)")[2].partition("</div>\n</div>")[0]
    assert "data:image/jpeg" in card


def test_of_an_unusable_image_what_can_be_drawn_is_shown(dataset: str) -> None:
    broken = dataset.partition("image: broken image (1)")[2].partition("</div>\n</div>")[0]
    page = dataset.partition("image: not an image (1)")[2].partition("</div>\n</div>")[0]
    assert "data:image/jpeg" in broken
    assert "no image to show" in page
    assert "data:" not in page


def test_pillows_remarks_about_odd_images_are_kept_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr("tests.support.small_store.image", odd_image)
    store = bare_run(tmp_path)
    path = tmp_path / "dataset.html"
    main(["browse", "--store", store.uri, "--output", str(path)])
    image_text(odd_image(0), 8)  # as `show` draws it on a terminal
    assert path.read_text().count("data:image/webp") == 20
    assert path.read_text().count("data:image/jpeg") == 1  # half of a torn one
    assert not [str(each.message) for each in recwarn]


def odd_image(number: int) -> bytes:
    """Return a PNG of a half transparent palette: Pillow warns where that is converted."""
    stream = io.BytesIO()
    image = Image.new("P", (8 + number, 8))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(stream, "PNG", transparency=bytes([128, 0]))
    return stream.getvalue()


def test_half_an_image_is_drawn_on_demand_only() -> None:
    assert thumbnail(torn_image()) is None
    assert thumbnail(torn_image(), torn=True) is not None
    assert thumbnail(torn_image()) is None


def test_an_image_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.pages.page.MOST_PIXELS", 100)
    assert thumbnail(image(1)) is None


@pytest.mark.parametrize("data", [None, b"", b"<html>", image(1)[:60]])
def test_what_is_no_image_has_no_thumbnail(data: bytes | None) -> None:
    assert thumbnail(data) is None


def test_thumbnails_are_small_and_keep_their_shape() -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (1000, 500)).save(stream, "JPEG")
    uri = thumbnail(stream.getvalue(), 100)
    assert uri is not None
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (100, 50)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (12345.6, "12,346"),
        (float("nan"), "nan"),
        (True, "True"),
        ("a", "a"),
    ],
)
def test_figures_are_written_for_people(value: object, text: str) -> None:
    assert figure(value) == text
