"""The whole DAG on one screen: which stage reads which artifacts and which parts of the recipe."""

from pipeline.engine.stage import Stage
from pipeline.recipe.embedding_columns import uses_embeddings
from pipeline.recipe.recipe import Recipe


def _dataset(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    source = recipe.images.source
    modules = {source.module}
    if source.kind == "mixture":
        modules |= {each.module for each in source.sources.values()}
    return tuple((module, name) for module in sorted(modules) for name in ("read", "fetch"))


def _rendered_conversations(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    if recipe.conversations.source.kind != "demo":
        return ()
    return ((recipe.images.source.module, "write_conversations"),)


DAG: tuple[Stage, ...] = (
    Stage(
        "images",
        "pipeline.data.images",
        reads=("images",),
        code=_dataset,
        network=True,
        probe="pipeline.data.probes:probe_images",
    ),
    Stage(
        "conversations",
        "pipeline.data.conversations",
        reads=("conversations",),
        # Only the rendered conversations are about the rendered images.
        also=lambda recipe: ("images",) if recipe.conversations.source.kind == "demo" else (),
        code=_rendered_conversations,
        network=True,
        probe="pipeline.data.probes:probe_conversations",
    ),
    Stage(
        "backbones",
        "pipeline.backbones.backbones",
        inputs=("images", "conversations"),
        reads=("backbones",),
        network=True,
        probe="pipeline.backbones.backbones:probe_backbones",
        standalone=lambda recipe: recipe.backbones.kind == "hub",
    ),
    Stage(
        "features",
        "pipeline.features.features",
        inputs=("images", "backbones"),
        reads=("features",),
    ),
    Stage(
        "examples",
        "pipeline.data.examples",
        inputs=("images", "conversations", "backbones"),
        reads=("examples",),
        # Examples are made beside the embeddings unless a filter asks for these.
        needs=lambda recipe: ("features",) if uses_embeddings(recipe.examples.filters) else (),
    ),
    Stage(
        "pretrain",
        "pipeline.training.pretrain",
        inputs=("images", "examples", "features", "backbones"),
        reads=("pretrain",),
        network=True,
        probe="pipeline.training.start:probe_start",
    ),
    Stage(
        "finetune",
        "pipeline.training.finetune",
        inputs=("images", "examples", "features", "backbones", "pretrain"),
        reads=("finetune",),
    ),
    Stage(
        "evaluate",
        "pipeline.evaluation.evaluate",
        inputs=("images", "examples", "features", "backbones", "pretrain", "finetune"),
        reads=("evaluate",),
    ),
    Stage(
        "publish",
        "pipeline.publishing.publish",
        inputs=("examples", "features", "backbones", "pretrain", "finetune", "evaluate"),
        # The bundle says what kind of images it was made for.
        reads=("publish", "features", "evaluate", "images"),
    ),
)

BY_NAME = {stage.name: stage for stage in DAG}
