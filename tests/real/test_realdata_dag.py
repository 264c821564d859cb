"""The same DAG on real COCO images, real captions and real LLaVA records."""

import csv
import io
import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.engine.dag import DAG
from tests.conftest import TINY, Cli, ForkedCli, assignments

pytestmark = [pytest.mark.realdata, pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
STAGES = [stage.name for stage in DAG]
GREYSCALE = 7888  # the one COCO image here that is not an RGB JPEG
VERBATIM = "llava_instruct_150k_verbatim_records.json"


def shown_in_the_readme() -> dict[str, str]:
    """Return the changes of the README's command for data of one's own."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "images.source.root=my-data" in line)
    words = shlex.split(line)
    given = [after for word, after in pairwise(words) if word == "--set"]
    return dict(each.split("=", 1) for each in given)


def recipe_changes(realdata: Path, conversations: Path) -> dict[str, object]:
    """Return what makes the demo recipe read COCO's folder and a LLaVA file."""
    small = {key: value for key, value in TINY.items() if not key.startswith("images.source.")}
    return {
        **small,
        **shown_in_the_readme(),
        "images.source.root": realdata / "coco",
        "conversations.source.path": conversations,
        "examples.caption_max_characters": 250,
        "examples.max_turns": 6,
        "examples.max_tokens": 600,
    }


@pytest.fixture(scope="module")
def run(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, str]:
    """Run the DAG once on the real data and return it with what it printed."""
    cli = ForkedCli(tmp_path_factory.mktemp("real") / "store")
    changes = recipe_changes(realdata, realdata / "instruct" / "llava_instruct_subset.json")
    return cli, cli.ok("run", "--wandb", "disabled", *assignments(changes), timeout=550)


def rows(cli: Cli, query: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(cli.ok("sql", query, "--format", "csv"))))


def test_every_stage_is_made(run: tuple[Cli, str]) -> None:
    lines = [line.split() for line in run[1].splitlines()]
    assert {line[0]: line[1] for line in lines if line and line[0] in STAGES} == dict.fromkeys(
        STAGES, "made"
    )


def test_every_real_image_passes_the_greyscale_one_too(
    run: tuple[Cli, str], realdata: Path
) -> None:
    with Image.open(realdata / "coco" / "val2017" / f"{GREYSCALE:012d}.jpg") as image:
        assert image.mode == "L"
    kept = rows(run[0], "SELECT image_id, origin, width FROM images")
    assert len(kept) == 110 + 158
    assert str(GREYSCALE) in {row["image_id"] for row in kept if row["origin"] == "val2017"}


def test_every_record_becomes_an_example_or_a_drop_with_a_reason(run: tuple[Cli, str]) -> None:
    query = "SELECT kind, reason, count(*) AS n FROM drops GROUP BY ALL"
    drops = {(row["kind"], row["reason"]): int(row["n"]) for row in rows(run[0], query)}
    assert drops["conversation", "image missing"] == 5
    assert not any(reason in ("", "None") for _, reason in drops)
    kept = {
        row["kind"]: int(row["n"])
        for row in rows(run[0], "SELECT kind, count(*) AS n FROM examples GROUP BY ALL")
    }
    dropped = {
        kind: sum(count for (of, _), count in drops.items() if of == kind)
        for kind in ("caption", "conversation")
    }
    assert kept["conversation"] + dropped["conversation"] == 42
    assert kept["caption"] + dropped["caption"] == 294 + 791
    assert dropped["caption"] < 20


def test_conversations_keep_their_turns(run: tuple[Cli, str]) -> None:
    query = "SELECT turns, count(*) AS n FROM examples WHERE kind = 'conversation' GROUP BY ALL"
    turns = {int(row["turns"]): int(row["n"]) for row in rows(run[0], query)}
    assert set(turns) == {1, 2, 3, 5, 6}
    assert turns[6] == 15


def test_metrics_are_numbers_under_every_condition(run: tuple[Cli, str]) -> None:
    query = "SELECT * FROM metrics WHERE split = 'test' AND isfinite(value)"
    found = {(row["stage"], row["condition"], row["metric"]) for row in rows(run[0], query)}
    for condition in ("real", "shuffled", "blind"):
        for metric in ("cider_d", "nll", "eos_rate"):
            assert ("pretrain", condition, metric) in found
            assert ("finetune", condition, metric) in found
        assert ("finetune", condition, "answer_accuracy") in found


def test_predictions_are_about_held_out_images(run: tuple[Cli, str]) -> None:
    query = (
        "SELECT p.kind, i.origin, i.split, count(*) AS n FROM predictions p "
        "JOIN images i USING (image_id) GROUP BY ALL"
    )
    found = rows(run[0], query)
    assert {row["kind"] for row in found} == {"caption", "answer", "presence"}
    assert {(row["origin"], row["split"]) for row in found} == {("val2017", "test")}


def test_a_second_run_does_nothing(run: tuple[Cli, str], realdata: Path) -> None:
    changes = recipe_changes(realdata, realdata / "instruct" / "llava_instruct_subset.json")
    plan = json.loads(run[0].ok("plan", "--format", "json", *assignments(changes)))
    assert {step["status"] for step in plan} == {"fresh"}


class FolderArtifact:
    """A folder as a stage sees an artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def path(self, name: str) -> Path:
        return self.folder / name

    def paths(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern))

    def directory(self, prefix: str) -> Path:
        return self.folder / prefix


def test_llava_records_about_absent_images_are_dropped_as_such(
    run: tuple[Cli, str], realdata: Path, tmp_path: Path
) -> None:
    from pipeline.data.conversations import conversations
    from pipeline.data.examples import examples
    from pipeline.engine.stage import StageContext
    from pipeline.progress import ConsoleReporter
    from pipeline.recipe.presets import preset
    from pipeline.settings import Settings
    from storage.store.artifacts import ArtifactStore

    instruct = realdata / "instruct"
    verbatim = json.loads((instruct / VERBATIM).read_text("utf-8"))
    assert len(verbatim) == 9
    both = json.loads((instruct / "llava_instruct_subset.json").read_text("utf-8")) + verbatim
    merged = tmp_path / "merged.json"
    merged.write_text(json.dumps(both), "utf-8")
    recipe = preset("demo").override(
        {key: str(value) for key, value in recipe_changes(realdata, merged).items()}
    )
    store = ArtifactStore(str(run[0].store), tmp_path / "cache", 2**30)
    inputs: dict[str, Any] = {
        name: store.artifact(next(iter(store.manifests(name)))) for name in ("images", "backbones")
    }

    def context(name: str) -> StageContext:
        for part in ("out", "scratch"):
            (tmp_path / name / part).mkdir(parents=True)
        out, scratch = tmp_path / name / "out", tmp_path / name / "scratch"
        return StageContext(inputs, out, scratch, Settings(), ConsoleReporter())

    spoken = context("conversations")
    assert conversations(spoken, recipe.conversations, seed=0)["conversations"] == 42 + 9
    inputs["conversations"] = FolderArtifact(spoken.out)
    summary = examples(context("examples"), recipe.examples, 0)
    assert summary["dropped"]["image missing"] == 5 + 9
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
