"""The whole demo, once, as a person runs it; every assertion reads what it left behind."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from pipeline.data.datasets.shapes.drawing import draw
from pipeline.data.datasets.shapes.scenes import COLOURS, SHAPES, make_scene
from tests.conftest import Cli
from tests.support.tiny_bundle import texture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]

STAGES = [
    "images",
    "conversations",
    "backbones",
    "features",
    "examples",
    "pretrain",
    "finetune",
    "evaluate",
    "publish",
]


def rows(cli: Cli, query: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(cli.ok("sql", query, "--format", "csv"))))


def metric(cli: Cli, name: str, condition: str, column: str = "value") -> float:
    query = (
        f"SELECT {column} FROM metrics WHERE stage = 'finetune' AND split = 'test' "
        f"AND metric = '{name}' AND condition = '{condition}'"
    )
    return float(rows(cli, query)[0][column])


def test_every_stage_is_printed_with_status_and_seconds(demo: tuple[Cli, str]) -> None:
    lines = [line.split() for line in demo[1].splitlines()]
    made = {line[0]: line[1] for line in lines if line and line[0] in STAGES}
    assert made == dict.fromkeys(STAGES, "made")


def test_captions_depend_on_the_image(demo: tuple[Cli, str]) -> None:
    real = metric(demo[0], "cider_d", "real")
    assert real >= 3 * metric(demo[0], "cider_d", "blind")
    assert real >= 3 * metric(demo[0], "cider_d", "shuffled")


def test_questions_are_answered_from_the_image(demo: tuple[Cli, str]) -> None:
    assert metric(demo[0], "answer_accuracy", "real") >= 0.85
    assert metric(demo[0], "answer_accuracy", "blind") <= 0.45
    assert metric(demo[0], "answer_accuracy", "shuffled") <= 0.45


@pytest.mark.parametrize("baseline", ["most_frequent", "nearest_neighbour"])
def test_captions_beat_every_baseline_beyond_noise(demo: tuple[Cli, str], baseline: str) -> None:
    assert metric(demo[0], "cider_d_gap", baseline, "low") > 0


def test_the_report_tells_all_conditions_and_floors_with_intervals(demo: tuple[Cli, str]) -> None:
    (path,) = re.findall(r"^report (.+)$", demo[1], re.MULTILINE)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", Path(path).read_text())
    conditions = ["real", "shuffled", "blind", "most_frequent", "nearest_neighbour"]
    at = cells.index("real")
    assert cells[at : at + 5] == conditions
    row = next(i for i in range(len(cells)) if cells[i : i + 2] == ["finetune", "cider_d"])
    for cell in cells[row + 2 : row + 7]:
        assert re.fullmatch(r"\d\.\d+ \[\d\.\d+, \d\.\d+\]", cell)


def test_presence_is_asked_fairly(demo: tuple[Cli, str]) -> None:
    assert metric(demo[0], "pope_accuracy", "blind") <= 0.55  # guessing gains nothing
    assert metric(demo[0], "pope_accuracy", "real") >= 0.8


def test_the_model_looks_at_what_is_asked_for_and_at_what_it_names(demo: tuple[Cli, str]) -> None:
    (right,) = rows(
        demo[0],
        "SELECT count(*) AS n, avg(hit::INTEGER) AS hits FROM (SELECT DISTINCT prediction_id, "
        "category, i.hit FROM importance i JOIN predictions p USING (prediction_id) "
        "WHERE i.condition = 'real' AND i.hit IS NOT NULL AND p.kind = 'answer' AND p.score = 1)",
    )
    assert int(right["n"]) >= 30
    # Four trainings gave 79 to 95 %. An object covers a few of the 49 patches.
    assert float(right["hits"]) >= 0.65
    assert metric(demo[0], "pointing", "real") > 2 * metric(demo[0], "pointing", "shuffled")
    assert metric(demo[0], "pointing_gap", "shuffled", "low") > 0


def test_ask_says_where_it_looked(demo: tuple[Cli, str], tmp_path: Path) -> None:
    from pipeline.data.datasets.shapes.drawing import draw
    from pipeline.data.datasets.shapes.scenes import make_scene

    scene = next(s for s in (make_scene(4242, n) for n in range(99)) if len(s.objects) == 1)
    draw(scene).save(tmp_path / "scene.png")
    drawing = tmp_path / "why.png"
    question = f"What colour is the {scene.objects[0].shape}?"
    arguments = (str(tmp_path / "scene.png"), question, "--why", "--output", str(drawing))
    printed = demo[0].ok("ask", *arguments)
    assert "Each grid divides the part of the image that the encoder sees" in printed
    assert drawing.read_bytes().startswith(b"\x89PNG")


def test_generations_stop_by_themselves(demo: tuple[Cli, str]) -> None:
    assert metric(demo[0], "eos_rate", "real") >= 0.99


def test_likelihood_is_best_with_the_right_image(demo: tuple[Cli, str]) -> None:
    real = metric(demo[0], "nll", "real")
    assert real < metric(demo[0], "nll", "shuffled")
    assert real < metric(demo[0], "nll", "blind")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_no_expert_collapses(demo: tuple[Cli, str], stage: str) -> None:
    usage = rows(
        demo[0],
        "SELECT metric, arg_max(value, step) AS share FROM training "
        f"WHERE stage = '{stage}' AND metric LIKE 'expert%' GROUP BY metric",
    )
    shares = [float(row["share"]) for row in usage]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert min(shares) > 0.1


def test_drops_have_one_reason_each(demo: tuple[Cli, str]) -> None:
    reasons = {
        row["reason"]: int(row["n"])
        for row in rows(demo[0], "SELECT reason, count(*) AS n FROM drops GROUP BY ALL")
    }
    assert reasons["broken image"] > 0
    assert reasons["not an image"] > 0
    assert reasons["refusal"] > 0
    assert reasons["too many characters"] > 0
    assert reasons["image marker count"] > 0
    assert "" not in reasons


def test_a_caption_that_is_left_out_names_its_file(demo: tuple[Cli, str]) -> None:
    files = rows(demo[0], "SELECT DISTINCT file FROM drops WHERE kind = 'caption'")
    assert files
    assert all(row["file"].endswith(".jpg") for row in files)


def test_no_image_is_trained_on_and_tested_with(demo: tuple[Cli, str]) -> None:
    shared = rows(
        demo[0],
        "SELECT count(*) AS n FROM examples a JOIN examples b USING (sha256) "
        "WHERE a.split = 'test' AND b.split <> 'test'",
    )
    assert shared[0]["n"] == "0"


def test_second_run_executes_nothing_and_says_so(demo: tuple[Cli, str]) -> None:
    again = demo[0].ok("run", "--preset", "demo")
    assert again.count("cached") >= len(STAGES)
    assert " made " not in again
    assert "nothing to do" in again
    plan = json.loads(demo[0].ok("plan", "--format", "json"))
    assert [step["stage"] for step in plan] == STAGES
    assert {step["status"] for step in plan} == {"fresh"}


def test_override_reruns_what_depends_on_it(demo: tuple[Cli, str]) -> None:
    change = ("--set", "pretrain.learning_rate=0.0007")
    plan = {s["stage"]: s for s in json.loads(demo[0].ok("plan", "--format", "json", *change))}
    assert plan["pretrain"]["status"] == "stale"
    assert "pretrain.learning_rate" in plan["pretrain"]["reason"]
    assert [plan[s]["status"] for s in STAGES[:5]] == ["fresh"] * 5
    assert [plan[s]["status"] for s in STAGES[6:]] == ["unknown"] * 3


def test_ask_and_caption_answer_about_any_jpeg_or_png(
    demo: tuple[Cli, str], tmp_path: Path
) -> None:
    scene = make_scene(seed=4242, index=3)
    jpeg, png = tmp_path / "scene.jpg", tmp_path / "scene.png"
    draw(scene).save(jpeg, quality=92)
    draw(scene).save(png)
    words = demo[0].ok("caption", str(jpeg)).lower()
    assert any(shape in words for shape in SHAPES)
    assert any(colour in words for colour in COLOURS)
    both = demo[0].ok("caption", str(jpeg), str(png))
    assert str(jpeg) in both
    assert str(png) in both
    number = demo[0].ok("ask", str(png), "How many objects are there?").strip().lower()
    assert number.rstrip(".") in {"one", "two"}


def test_an_image_unlike_the_rendered_ones_is_answered_with_a_warning(
    demo: tuple[Cli, str], tmp_path: Path
) -> None:
    held_out, sand = tmp_path / "held_out.jpg", tmp_path / "sand.png"
    scene = make_scene(seed=4242, index=3)
    draw(scene).save(held_out, quality=92)
    sand.write_bytes(texture())
    done = demo[0]("caption", str(held_out), str(sand))
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "unlike" in line]
    assert warned == [
        f"{sand}: this image is unlike those the model was trained on (rendered shapes): "
        "the answer may be a guess"
    ]
    assert str(sand) in done.stdout
    query = "SELECT summary FROM artifacts WHERE stage = 'publish'"
    assert "least_similarity" in rows(demo[0], query)[0]["summary"]


def test_show_follows_an_image_through_every_room(demo: tuple[Cli, str]) -> None:
    shown = demo[0].ok("show")
    for name in ("captions", "objects", "features", "examples", "predictions"):
        assert name in shown
    assert "test" in shown


def test_scores_print_all_conditions(demo: tuple[Cli, str]) -> None:
    printed = demo[0].ok("scores")
    for word in ("real", "shuffled", "blind", "cider_d", "answer_accuracy", "eos_rate"):
        assert word in printed
    assert "chair_s" not in printed
    assert "chair_s" in demo[0].ok("scores", "--all")
