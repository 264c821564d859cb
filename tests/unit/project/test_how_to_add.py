"""What ARCHITECTURE.md says under "How to add" is all there is to do: each is done in a copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("flows", "pipeline", "model", "storage")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project's code, to be added to."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def add(copy: Path, name: str, before: str, new: str) -> None:
    """Insert text before some that stands in a file once."""
    text = (copy / name).read_text()
    assert text.count(before) == 1, f"{before!r} in {name}"
    (copy / name).write_text(text.replace(before, new + before))


def python(copy: Path, *arguments: str) -> str:
    """Run Python with the copy's code in an empty folder and return what it prints."""
    folder = copy / "empty"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_stage(copy: Path) -> None:
    (copy / "pipeline/data/counts.py").write_text(
        '"""Stage `counts`."""\n\n\ndef counts(context, examples, seed):\n    return {}\n'
    )
    entry = '    Stage("counts", "pipeline.data.counts", ("examples",), ("examples",)),\n'
    add(copy, "pipeline/engine/dag.py", ")\n\nBY_NAME", entry)
    assert "counts" in python(copy, "-m", "flows.cli", "plan")


def test_a_projector(copy: Path) -> None:
    config = '''class TwiceConfig(LinearConfig):
    """Twice the linear one."""

    kind: Literal["twice"] = "twice"


'''
    add(copy, "model/projectors.py", "ProjectorConfig = Annotated[", config)
    add(copy, "model/projectors.py", "LinearConfig | Mlp2xGeluConfig |", "TwiceConfig | ")
    change = 'pretrain.projector={"kind": "twice"}'
    assert "twice" in python(copy, "-m", "flows.cli", "recipe", "--set", change)


def test_an_encoder(copy: Path) -> None:
    line = '        "ViT-X-16": EncoderLine(160, 16, 320, 6, {"mine": "me/vit-x-16"}),\n'
    add(copy, "model/encoder_table.py", '        "ViT-B-32": EncoderLine', line)
    values = {
        "backbones.clip_name": "ViT-X-16",
        "backbones.clip_pretrained": "mine",
        "features.patches": 100,
        "features.layer": -6,
        "pretrain.projector.tokens": 100,
    }
    changes = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    assert "ViT-X-16" in python(copy, "-m", "flows.cli", "recipe", "--preset", "coco", *changes)


def test_a_filter_for_good(copy: Path) -> None:
    line = '    ("shouting", "caption = upper(caption)"),\n'
    add(copy, "pipeline/data/filters.py", '    ("duplicate", "copy > 1"),\n)\n\n# Relation', line)
    code = (
        "from pipeline.data.filters import CAPTION_FILTERS, first_reason\n"
        "from storage.sql.queries import Database\n"
        "import pyarrow as pa\n"
        "rows = pa.table({'caption': ['A DOG', 'a cat']})\n"
        "sql = first_reason([f for f in CAPTION_FILTERS if f[0] == 'shouting'])\n"
        "with Database({'rows': rows}) as database:\n"
        "    print(database.query(f'SELECT {sql} AS reason FROM rows')['reason'].to_pylist())\n"
    )
    assert python(copy, "-c", code).strip() == "['shouting', None]"


def test_a_metric(copy: Path) -> None:
    line = '    metrics.append(mean("words", images, [len(words(text)) for text in texts], 0))\n'
    before = '    known = [row for row in rows if row["mentions"] is not None]\n'
    add(copy, "pipeline/evaluation/metrics.py", before, line)
    shown = '        "words": ShownMetric("Words of a caption", main=True, card=True),\n'
    add(copy, "pipeline/evaluation/shown_metrics.py", '        "eos_rate": ShownMetric', shown)
    code = (
        "from flows.commands.scores import MAIN\n"
        "from pipeline.evaluation.metrics import caption_metrics\n"
        "row = {'image_id': 1, 'prediction': 'a red dog', 'references': ['a dog'],"
        " 'mentions': None}\n"
        "print('words' in MAIN, [m.parts[0, 0] for m in caption_metrics([row]) if m.metric =="
        " 'words'])\n"
    )
    assert python(copy, "-c", code).replace("np.float64(3.0)", "3.0").strip() == "True [3.0]"


def test_a_dataset(copy: Path) -> None:
    source = '''class ListImages(Part):
    """A list of file names and captions, beside the images."""

    kind: Literal["list"] = "list"
    module: ClassVar[str] = "pipeline.data.datasets.listed"
    phrase: ClassVar[str] = "images of a list"
    title: ClassVar[str] = "a list"
    licence: ClassVar[str] = UNKNOWN
    root: str = Field(description="Folder.")


'''
    sources = "pipeline/recipe/data_sources.py"
    add(copy, sources, "OneImageSource = ", source)
    add(copy, sources, "DemoImages | FolderImages", "ListImages | ")
    reader = copy / "pipeline/data/datasets/listed.py"
    reader.write_text(
        '"""A list."""\n\nfrom pipeline.data.annotations import Annotations\n\n\n'
        "def probe(source):\n    return {}\n\n\n"
        "def read(context, images, seed, drops):\n"
        "    return {'a': Annotations([], [], []), 'b': Annotations([], [], [], test=True)}\n\n\n"
        "def fetch(context, images, chosen):\n    raise FileNotFoundError(images.source.root)\n"
    )
    code = (
        "from pipeline.data.images import images\n"
        "from pipeline.engine.dag import BY_NAME\n"
        "from pipeline.engine.materialize import payload_of\n"
        "from pipeline.recipe.presets import preset\n"
        "recipe = preset('demo').override({'images.source.kind': 'list',"
        " 'images.source.root': 'here', 'conversations.source.kind': 'none',"
        " 'finetune.caption_share': 1.0})\n"
        "code = payload_of(BY_NAME['images'], recipe, {})['code']\n"
        "print('pipeline/data/datasets/listed.py' in code)\n"
        "try:\n    images(None, recipe.images, 0)\n"
        "except FileNotFoundError as error:\n    print(error)\n"
    )
    assert python(copy, "-c", code).split() == ["True", "here"]
