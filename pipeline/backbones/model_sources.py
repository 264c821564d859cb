"""Which source a recipe names for a published model, and whether it changed since.

Every `plan` checks this, so nothing heavy is imported here; `pipeline.backbones.model_places`
fetches.
"""

from collections.abc import Sequence
from pathlib import Path

from model.encoder_table import encoder_line, is_timm
from pipeline.data.source_layout import local_folder
from pipeline.engine.stage import SourceState
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import HUB, Repository, hub_state, parse_address
from pipeline.recipe.backbone_parts import EncoderChoice, HubBackbones

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LM_FILES = (CONFIG, TOKENIZER, INDEX, WEIGHTS)  # probed if a place cannot be listed
CLIP_CONFIG = "open_clip_config.json"
CLIP_WEIGHTS = "open_clip_model.safetensors"
CLIP_FILES = (CLIP_CONFIG, CLIP_WEIGHTS)
TIMM_FILES = (CONFIG, WEIGHTS)
GGUF = ".gguf"  # ends the name of a file that holds a whole language model, tokenizer included

Source = Repository | Path | str


def encoder_source(encoder: EncoderChoice) -> Source:
    """Return where an encoder's weights are; a tag of open_clip names a repository of the Hub."""
    if is_timm(encoder.name):
        return find_source(encoder.pretrained, "main")
    repository = encoder_line(encoder.name).tags.get(encoder.pretrained)
    if repository:
        return Repository(repository, "main")
    return find_source(encoder.pretrained, "main")


def encoder_files(encoder: EncoderChoice) -> tuple[str, str]:
    """Return the names of an encoder's config and weights in a folder."""
    return TIMM_FILES if is_timm(encoder.name) else CLIP_FILES


def lm_source(choice: HubBackbones) -> Source:
    """Return where the language model is."""
    return find_source(choice.lm_repository, choice.lm_revision)


def find_source(text: str, revision: str) -> Source:
    """Return what a text names: a repository of the Hub, a local folder or file, or a URL.

    A path is recognized by its first character (`/`, `~`, `.`) or because it exists, as in
    transformers.

    Args:
        text: `owner/name`, `hf://owner/name[@revision][/folder]`, a path, or any fsspec URL.
        revision: Revision of a repository whose address names none.

    Raises:
        PipelineError: An `hf://` address names no repository of a model.
    """
    if text.startswith(HUB):
        repository, folder = parse_address(text, revision)
        if repository.kind != "model" or is_one_file(folder):
            raise PipelineError(f"not a model: {text}", "write hf://owner/name[@revision][/folder]")
        return repository._replace(folder=folder)
    local = local_folder(text)
    if local is None:
        return text
    is_path = text.startswith(("file:", "/", "~", ".")) or text.count("/") > 1
    if is_path or is_one_file(text) or local.exists():
        return local
    return Repository(text, revision)


def inside(source: Source, folder: str) -> Source:
    """Return a folder of a source."""
    match source:
        case Repository():
            return source._replace(folder=f"{source.folder}/{folder}".lstrip("/"))
        case Path():
            return source / folder
    return f"{source.rstrip('/')}/{folder}"


def address_of(source: Source) -> str:
    """Return the text with which a recipe names a source, from any working directory."""
    match source:
        case Repository():
            return source.address
        case Path():
            return str(source.resolve())
    return source


def is_one_file(source: Source) -> bool:
    """Return whether a path or URL names a file of weights, not a folder."""
    return not isinstance(source, Repository) and str(source).endswith((".safetensors", GGUF))


def state_of(label: str, source: Source, names: Sequence[str]) -> SourceState:
    """Return the state of a source, so that a new version is noticed.

    Raises:
        PipelineError: The Hub refuses, and its cache does not know the branch.
        StorageError: It does not exist.
    """
    if isinstance(source, Repository):
        return hub_state(label, source)
    from storage.fetch.transfer import probe  # imports every kind of transfer
    from storage.fetch.web import is_http

    url = str(source)
    if not is_http(url) or is_one_file(url):
        return {label: probe(url)}
    states = {name: probe_if_there(f"{url.rstrip('/')}/{name}") for name in names}
    return {label: {f"{n} {key}": v for n, state in states.items() for key, v in state.items()}}


def probe_if_there(url: str) -> dict[str, str]:
    """Return the state of a remote file, empty if it does not exist.

    Raises:
        StorageError: The place cannot be reached.
    """
    from storage.errors import MissingError
    from storage.fetch.transfer import probe

    try:
        return probe(url)
    except MissingError:
        return {}
