"""Stage `backbones`: the frozen encoders and the language model, in their ordinary layouts.

`clip/` is a folder of open_clip or timm, `second/` one of a second encoder, where the recipe names
one, and `lm/` a Hugging Face folder. Whether they were fetched or
trained here, everything downstream loads them with the same code.
"""

from pipeline.backbones.model_sources import (
    LM_FILES,
    encoder_files,
    encoder_source,
    lm_source,
    state_of,
)
from pipeline.engine.stage import SourceState, StageContext, Summary
from pipeline.recipe.backbone_parts import BackbonesChoice, HubBackbones
from pipeline.recipe.recipe import Recipe


def backbones(context: StageContext, backbones: BackbonesChoice, seed: int) -> Summary:
    """Write the folders `clip` and `lm`, and `second` where there is a second encoder.

    Raises:
        UnreachableError: The Hub cannot be reached now.
        PipelineError: The model does not exist, or may not be read or used.
        StorageError: A folder or URL cannot be read.
    """
    if isinstance(backbones, HubBackbones):
        from pipeline.backbones.published import fetch_backbones

        return fetch_backbones(context, backbones)
    from pipeline.backbones.tiny import train_tiny_backbones

    return train_tiny_backbones(context, backbones, seed)


def probe_backbones(recipe: Recipe) -> SourceState:
    """Return the state of weights that may change: a branch's commit, files of a folder or URL.

    Raises:
        PipelineError: The Hub refuses, and its cache does not know the branch.
        StorageError: A folder or URL does not exist.
    """
    choice = recipe.backbones
    if not isinstance(choice, HubBackbones):
        return {}
    states = [
        state_of(encoder.folder, encoder_source(encoder), encoder_files(encoder))
        for encoder in choice.encoders
    ]
    states.append(state_of("lm", lm_source(choice), LM_FILES))
    return {label: state for each in states for label, state in each.items()}
