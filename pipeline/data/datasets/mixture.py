"""Several sources of images as one dataset, each under its own name.

An image's origin begins with the name of its source (`coco/train2017`), which is how LLaVA's
mixtures name images, too. Ids are made anew from the source and its id, as two sources may use
the same ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.data.source_layout import Chosen
from pipeline.engine.stage import SourceState, StageContext
from pipeline.recipe.data_sources import MixtureImages
from pipeline.recipe.parts import ImagesPart

if TYPE_CHECKING:
    from pipeline.data.annotations import Annotations
    from pipeline.data.image_files import ImageFiles


def probe(source: MixtureImages) -> SourceState:
    """Return the states of all sources, each label behind the name of its source."""
    return {
        f"{name} {label}": state
        for name, each in sorted(source.sources.items())
        for label, state in import_module(each.module).probe(each).items()
    }


def read(
    context: StageContext, images: ImagesPart, seed: int, drops: list[dict[str, Any]]
) -> dict[str, "Annotations"]:
    """Return the annotations of all sources by `source/origin`.

    Raises:
        PipelineError: As the source's own `read`.
        StorageError: As the source's own `read`.
    """
    annotations: dict[str, Annotations] = {}
    taken: set[int] = set()
    for name, dataset, inside, part in _sources(context, images):
        lost: list[dict[str, Any]] = []
        for origin, of_origin in dataset.read(inside, part, seed, lost).items():
            limit = None if of_origin.test else _limits(images).get(name)
            annotations[f"{name}/{origin}"] = _renamed(of_origin, name, taken, limit, seed)
        drops += [{**row, "file": f"{name}/{row['file']}"} for row in lost]
    return annotations


def fetch(context: StageContext, images: ImagesPart, chosen: Chosen) -> Mapping[str, "ImageFiles"]:
    """Return where the chosen images of each `source/origin` are.

    Raises:
        PipelineError: As the source's own `fetch`.
        StorageError: As the source's own `fetch`.
    """
    by_origin: dict[str, ImageFiles] = {}
    for name, dataset, inside, part in _sources(context, images):
        start = f"{name}/"
        mine = {
            origin.removeprefix(start): records
            for origin, records in chosen.items()
            if origin.startswith(start)
        }
        files: Mapping[str, ImageFiles] = dataset.fetch(inside, part, mine)
        by_origin |= {start + origin: files[origin] for origin in mine}
    return by_origin


def _sources(
    context: StageContext, images: ImagesPart
) -> Iterator[tuple[str, ModuleType, StageContext, ImagesPart]]:
    """Yield name, module, context and recipe part of each source."""
    assert isinstance(images.source, MixtureImages)  # this module reads no other source
    for name, source in sorted(images.source.sources.items()):
        scratch = context.scratch / name
        scratch.mkdir(exist_ok=True)
        start = f"{name} "
        state = {
            label.removeprefix(start): value
            for label, value in context.source.items()
            if label.startswith(start)
        }
        inside = replace(context, scratch=scratch, source=state)
        yield (
            name,
            import_module(source.module),
            inside,
            images.model_copy(update={"source": source}),
        )


def _limits(images: ImagesPart) -> Mapping[str, int]:
    assert isinstance(images.source, MixtureImages)
    return images.source.limits


def _renamed(
    annotations: "Annotations", name: str, taken: set[int], limit: int | None, seed: int
) -> "Annotations":
    """Return annotations with ids and origins of the mixture, of at most `limit` images."""
    import pyarrow as pa

    from pipeline.data.annotations import Annotations
    from pipeline.data.draws import id_of, rank
    from pipeline.data.schemas import CAPTIONS, OBJECTS
    from storage.packed_rows import PackedRows

    ids = {record["id"]: id_of(f"{name}:{record['id']}", taken) for record in annotations.images}
    if limit is not None:
        ids = {old: ids[old] for old in sorted(ids, key=lambda old: rank(ids[old], seed))[:limit]}
    images = [
        {**record, "id": ids[record["id"]], "origin": f"{name}/{record['origin']}", "source": name}
        for record in annotations.images
        if record["id"] in ids
    ]

    def about(packed: PackedRows, key: str, schema: pa.Schema) -> PackedRows:
        renamed = PackedRows(f"{key} of {name}", schema)
        for rows in packed:
            images = pa.array(map(ids.get, rows["image_id"].to_pylist()), pa.int64())
            rows, images = rows.filter(images.is_valid()), images.drop_null()
            columns = {"image_id": images, key: pa.nulls(len(rows), pa.int64())}
            renamed.add_table(pa.table([columns.get(n, rows[n]) for n in schema.names], schema))
        return renamed

    return Annotations(
        sorted(images, key=lambda record: record["id"]),
        about(annotations.captions, "caption_id", CAPTIONS),
        about(annotations.objects, "object_id", OBJECTS),
        test=annotations.test,
    )
