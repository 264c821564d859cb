"""How large the backbones of a recipe are, for estimates made before they are fetched.

It imports torch only for the shape of a timm encoder.
"""

from model.encoder_table import encoder_line, is_timm
from model.language_table import LANGUAGE_MODELS, LanguageLine, line_of
from pipeline.errors import PipelineError
from pipeline.recipe.backbone_parts import TINY_POSITIONS, BackbonesChoice, TinyBackbones
from pipeline.recipe.recipe import Recipe


def language_line(backbones: BackbonesChoice) -> LanguageLine:
    """Return the dimensions of a recipe's language model.

    Raises:
        PipelineError: They are not known.
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
    known = line_of(backbones.lm_repository)
    if known is None:
        raise PipelineError(
            f"the dimensions of {backbones.lm_repository} are not known",
            f"model/language_table.py has {', '.join(LANGUAGE_MODELS)}; add a line for another one",
        )
    return known


def vision_width(recipe: Recipe) -> int:
    """Return the width of the encoder's patch embeddings.

    Raises:
        ModelError: timm knows no such encoder.
    """
    backbones = recipe.backbones
    if isinstance(backbones, TinyBackbones):
        return backbones.clip_width
    if is_timm(backbones.clip_name):
        from model.timm_encoder import timm_shape  # the only import of torch; loads no weights

        return timm_shape(backbones.clip_name, recipe.features.layer).width
    return encoder_line(backbones.clip_name).width
