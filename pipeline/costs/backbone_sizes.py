"""How large the backbones of a recipe are, for estimates made before they are fetched.

It imports torch only for the shape of a timm encoder.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model.encoder_table import encoder_line, is_timm
from model.language_config import line_of_config, line_of_gguf
from model.language_table import LANGUAGE_MODELS, LanguageLine, line_of
from pipeline.backbones.model_sources import CONFIG, Source, is_one_file, lm_source
from pipeline.errors import PipelineError
from pipeline.progress import ConsoleReporter
from pipeline.recipe.backbone_parts import TINY_POSITIONS, BackbonesChoice, TinyBackbones
from pipeline.recipe.recipe import Recipe
from storage.errors import redact


def language_line(backbones: BackbonesChoice) -> LanguageLine:
    """Return the dimensions of a recipe's language model.

    Those of a published model come from its config.json or GGUF header if it is on this machine,
    from a table if its name is known, else from its place; no weights are fetched.

    Raises:
        ModelError: The family is not known to plans.
        PipelineError: There is no config, or its place cannot be reached.
        StorageError: A URL cannot be read.
    """
    if isinstance(backbones, TinyBackbones):
        width = backbones.lm_width
        return LanguageLine(
            backbones.lm_vocabulary,
            width,
            backbones.lm_layers,
            backbones.lm_heads,
            4 * width,
            TINY_POSITIONS,
            fused_gelu=True,
            dropout=0.0,
        )
    source = lm_source(backbones)
    if isinstance(source, Path) and source.is_file() and is_one_file(source):
        return line_of_gguf(source)
    known = line_of(backbones.lm_repository)
    # A folder that is here tells more than its name.
    if known and not (isinstance(source, Path) and source.is_dir()):
        return known
    return line_of_config(_config(source), backbones.lm_repository)


def _config(source: Source) -> Mapping[str, Any]:
    """Return a model's config: of a folder, the Hub or its cache, or a URL; no weights.

    Raises:
        PipelineError: There is none, or its place cannot be reached.
        StorageError: The URL cannot be read.
    """
    # They import every kind of transfer, which few plans need.
    from pipeline.backbones.model_files import read_json
    from pipeline.backbones.model_places import place_of

    if is_one_file(source):
        raise PipelineError(
            f"the dimensions of {redact(str(source))} are not known before it is fetched",
            f"name the model's repository, or one of {', '.join(LANGUAGE_MODELS)}",
        )
    with TemporaryDirectory(prefix="phivision-") as folder:
        place = place_of(source, Path(folder), ConsoleReporter())
        if not place.has(CONFIG):
            raise PipelineError(
                f"{place.title} has no {CONFIG}", "it must be a transformers language model"
            )
        place.bring([CONFIG], Path(folder))
        return read_json(Path(folder) / CONFIG, place.title)


def vision_width(recipe: Recipe) -> int:
    """Return the width of the patch embeddings, of two encoders that of both together.

    Raises:
        ModelError: timm knows no such encoder.
    """
    backbones, features = recipe.backbones, recipe.features
    if isinstance(backbones, TinyBackbones):
        return backbones.clip_width
    layers = (features.layer, features.second_layer)
    encoders = zip(backbones.encoders, layers, strict=False)
    return sum(_width(encoder.name, layer) for encoder, layer in encoders)


def _width(name: str, layer: int) -> int:
    if not is_timm(name):
        return encoder_line(name).width
    from model.timm_encoder import timm_shape  # the only import of torch; loads no weights

    return timm_shape(name, layer).width
