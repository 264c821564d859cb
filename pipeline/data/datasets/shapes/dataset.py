"""The rendered dataset as a source: archives in COCO's layout, conversations in LLaVA's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.source_layout import ANNOTATIONS, SPLITS, Chosen
from pipeline.engine.stage import SourceState, StageContext
from pipeline.recipe.data_sources import DemoImages
from pipeline.recipe.parts import ImagesPart

if TYPE_CHECKING:
    from pipeline.data.annotations import Annotations
    from pipeline.data.image_files import ImageFiles


def probe(source: DemoImages) -> SourceState:
    """Return nothing: what is rendered follows from the recipe."""
    del source
    return {}


def read(
    context: StageContext, images: ImagesPart, seed: int, drops: list[dict[str, Any]]
) -> dict[str, "Annotations"]:
    """Render the dataset and return its annotations, `train2017` before `val2017`."""
    from pipeline.data.annotations import read_coco
    from pipeline.data.datasets.shapes.rendering import render_coco
    from pipeline.data.downloads import fetch_whole

    counts, folder = _counts(images), _folder(context)
    with context.report.track("render images", sum(counts.values())) as tick:
        render_coco(folder, seed=seed, advance=tick, **counts)
    path = fetch_whole(context, folder.as_uri(), ANNOTATIONS, {})
    return {split: read_coco(path, split, drops) for split in SPLITS}


def fetch(context: StageContext, images: ImagesPart, chosen: Chosen) -> Mapping[str, "ImageFiles"]:
    """Return the archive of each split's images."""
    from pipeline.data.downloads import fetch_whole
    from pipeline.data.image_files import ImageFiles

    del images, chosen
    root = _folder(context).as_uri()
    return {
        split: ImageFiles((fetch_whole(context, root, f"zips/{split}.zip", {}),))
        for split in SPLITS
    }


def write_conversations(context: StageContext, images: ImagesPart, seed: int) -> Path:
    """Write the conversations about the rendered images as LLaVA-Instruct JSON; return the file."""
    from pipeline.data.datasets.shapes.rendering import render_conversations

    counts, path = _counts(images), context.scratch / "rendered.json"
    with context.report.track("write conversations", sum(counts.values())) as tick:
        render_conversations(path, seed=seed, advance=tick, **counts)
    return path.resolve()


def _counts(images: ImagesPart) -> dict[str, int]:
    assert isinstance(images.source, DemoImages)  # a recipe with another source is refused
    return {"train_images": images.source.train, "val_images": images.source.test}


def _folder(context: StageContext) -> Path:
    return (context.scratch / "rendered").resolve()
