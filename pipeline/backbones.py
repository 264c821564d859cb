"""Stage `backbones`: the frozen CLIP and the language model, in their ordinary layouts.

`clip/` is an open_clip folder, `lm/` a Hugging Face folder. Whether they were fetched or trained
here, everything downstream loads them with the same code.
"""

from pathlib import Path

from model.encoder_table import is_path
from pipeline.backbone_parts import BackbonesChoice, HubBackbones
from pipeline.hub import fetching
from pipeline.recipe import Recipe
from pipeline.stage import SourceState, StageContext, Summary


def backbones(context: StageContext, backbones: BackbonesChoice, seed: int) -> Summary:
    """Write the folders `clip` and `lm`.

    Raises:
        UnreachableError: The Hub cannot be reached now.
        PipelineError: It has no such model.
    """
    if isinstance(backbones, HubBackbones):
        return _from_hub(context, backbones)
    from pipeline.tiny_backbones import train_tiny_backbones

    return train_tiny_backbones(context, backbones, seed)


def probe_backbones(recipe: Recipe) -> SourceState:
    """Return the state of a local file of encoder weights, so that a new one is noticed."""
    choice = recipe.backbones
    if not isinstance(choice, HubBackbones) or not is_path(choice.clip_pretrained):
        return {}
    from storage.transfer import probe

    return {"clip": probe(str(Path(choice.clip_pretrained).expanduser()))}


def _from_hub(context: StageContext, choice: HubBackbones) -> Summary:
    from huggingface_hub import snapshot_download

    from model.encoder import fetch_clip

    remedy = "check the network and backbones.*, or fill the Hugging Face cache beforehand"
    with fetching("the backbones", remedy):
        context.report.say(f"  fetch {choice.clip_name}/{choice.clip_pretrained}")
        folder = context.out / "clip"
        parameters = fetch_clip(choice.clip_name, choice.clip_pretrained, folder)
        context.report.say(f"  fetch {choice.lm_repository} at {choice.lm_revision}")
        # Weights as safetensors only, and none of the repository's code.
        snapshot_download(
            choice.lm_repository,
            revision=choice.lm_revision,
            local_dir=context.out / "lm",
            allow_patterns=["*.json", "*.safetensors", "*.txt", "LICENSE*"],
        )
    for leftover in (context.out / "lm" / ".cache").rglob("*"):
        if leftover.is_file():
            leftover.unlink()
    return {"clip": choice.clip_name, "clip_parameters": parameters, "lm": choice.lm_repository}
