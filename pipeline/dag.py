"""The whole DAG on one screen: which stage reads which artifacts and which parts of the recipe."""

from pipeline.stage import Stage

DAG: tuple[Stage, ...] = (
    Stage("images", reads=("images",), network=True, probe="pipeline.source_layout:probe_images"),
    Stage(
        "conversations",
        reads=("conversations",),
        # Only those that we render speak about the pictures that we render.
        also=lambda recipe: ("images",) if recipe.conversations.source.kind == "demo" else (),
        network=True,
        probe="pipeline.source_layout:probe_conversations",
    ),
    Stage(
        "backbones",
        inputs=("images", "conversations"),
        reads=("backbones",),
        network=True,
        probe="pipeline.backbones:probe_backbones",
        standalone=lambda recipe: recipe.backbones.kind == "hub",
    ),
    Stage("features", inputs=("images", "backbones"), reads=("features",)),
    Stage("examples", inputs=("images", "conversations", "backbones"), reads=("examples",)),
    Stage(
        "pretrain",
        inputs=("images", "examples", "features", "backbones"),
        reads=("pretrain",),
    ),
    Stage(
        "finetune",
        inputs=("images", "examples", "features", "backbones", "pretrain"),
        reads=("finetune",),
    ),
    Stage(
        "evaluate",
        inputs=("images", "examples", "features", "backbones", "pretrain", "finetune"),
        reads=("evaluate",),
    ),
    Stage(
        "publish",
        inputs=("examples", "features", "backbones", "pretrain", "finetune", "evaluate"),
        # The bundle says what kind of images it was made for.
        reads=("publish", "features", "evaluate", "images"),
    ),
)

BY_NAME = {stage.name: stage for stage in DAG}
