"""Published backbones: encoders and language model from the Hub, its cache, a folder or a URL."""

import shutil
from pathlib import Path

from model.encoder import write_clip
from model.encoder_table import encoder_line, is_timm
from model.gguf_model import write_gguf_model
from model.timm_encoder import write_timm
from pipeline.backbones.model_files import bring_clip, bring_language_model, check_weights
from pipeline.backbones.model_places import Place, place_of
from pipeline.backbones.model_sources import (
    GGUF,
    Source,
    encoder_files,
    encoder_source,
    is_one_file,
    lm_source,
)
from pipeline.engine.stage import StageContext, Summary
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import Repository, at_commit
from pipeline.recipe.backbone_parts import EncoderChoice, HubBackbones
from storage.errors import redact
from storage.fetch.transfer import download


def fetch_backbones(context: StageContext, choice: HubBackbones) -> Summary:
    """Write the folders of the encoders and `lm`, and return their figures and commits.

    Raises:
        UnreachableError: The Hub cannot be reached now.
        PipelineError: The model does not exist, or may not be read or used.
        ModelError: The weights do not fit, or the model needs code of its own.
        StorageError: A folder or URL cannot be read.
    """
    figures, commits = {}, {}
    for encoder in choice.encoders:
        folder = encoder.folder
        figures[folder] = encoder.name
        parameters, commits[f"{folder}_commit"] = _write_encoder(context, encoder)
        figures[f"{folder}_parameters"] = parameters
    commits["lm_commit"] = _write_lm(context, choice)
    return {
        **figures,
        "lm": redact(choice.lm_repository),
        **{name: commit for name, commit in commits.items() if commit},
    }


def _write_encoder(context: StageContext, encoder: EncoderChoice) -> tuple[int, str]:
    """Write an encoder's folder; return its parameters and its commit on the Hub or ""."""
    source, beside, commit = encoder_source(encoder), "", ""
    config, kept = encoder_files(encoder)
    out = context.out / encoder.folder
    context.report.say(f"  fetch {encoder.name} {redact(encoder.pretrained)}")
    if not isinstance(source, Repository) and is_one_file(source):
        weights = _one_file(context, source, encoder.field, f"{encoder.folder}.safetensors")
    else:
        # Not in `out`: writing there would change the cache's own file, which may be linked.
        folder = context.scratch / encoder.folder
        shutil.rmtree(folder, ignore_errors=True)
        place = _place(context, source, encoder.folder)
        bring_clip(place, folder, (config, kept))
        weights, commit = folder / kept, place.commit
        if (folder / config).is_file():
            beside = (folder / config).read_text()
    check_weights(weights, redact(encoder.pretrained))
    if is_timm(encoder.name):
        return write_timm(encoder.name, weights, out, beside), commit
    tags = encoder_line(encoder.name).tags
    tag = encoder.pretrained if encoder.pretrained in tags else ""
    return write_clip(encoder.name, weights, out, tag, beside), commit


def _write_lm(context: StageContext, choice: HubBackbones) -> str:
    """Write the folder `lm`; return its commit on the Hub or ""."""
    source, title = lm_source(choice), redact(choice.lm_repository)
    context.report.say(f"  fetch {title}")
    if not isinstance(source, Repository) and is_one_file(source):
        path = _one_file(context, source, "lm_repository", f"lm{GGUF}")
        write_gguf_model(path, context.out / "lm", title)
        return ""
    place = _place(context, source, "lm")
    bring_language_model(place, context.out / "lm", context.report.say)
    return place.commit


def _one_file(context: StageContext, source: Path | str, field: str, name: str) -> Path:
    """Return a single file of weights, fetched if it is behind a URL."""
    if isinstance(source, Path):
        if not source.is_file():
            raise PipelineError(f"No such file: {source}", f"check backbones.{field}")
        return source
    with context.report.track(f"fetch {name}", None) as tick:
        target = context.scratch / name
        return download(source, target, checksum=None, size=None, advance=tick)


def _place(context: StageContext, source: Source, label: str) -> Place:
    if isinstance(source, Repository):
        source = at_commit(source, label, context.source)
    return place_of(source, context.scratch, context.report)
