"""Whether the sources of images and conversations have changed; `plan` asks every time."""

from importlib import import_module
from pathlib import Path

from pipeline.data.source_layout import is_bare, state_of
from pipeline.engine.stage import SourceState
from pipeline.hub.snapshots import HUB, Repository, hub_state, parse_address
from pipeline.recipe.data_sources import (
    ConversationSource,
    FileConversations,
    HubConversations,
    MixtureConversations,
)
from pipeline.recipe.recipe import Recipe


def probe_images(recipe: Recipe) -> SourceState:
    """Return the state of the source of images, so that a changed one re-runs the stage."""
    source = recipe.images.source
    return import_module(source.module).probe(source)


def probe_conversations(recipe: Recipe) -> SourceState:
    """Return the state of a conversation file whose checksum the recipe does not give."""
    source = recipe.conversations.source
    if isinstance(source, MixtureConversations):
        states = (_state(name, each) for name, each in sorted(source.sources.items()))
        return {label: state for of_source in states for label, state in of_source.items()}
    return _state("conversations", source)


def _state(label: str, source: ConversationSource) -> SourceState:
    match source:
        case HubConversations(repository=name, revision=revision):
            return hub_state(label, Repository(name, revision, "dataset"))
        case FileConversations(path=path, sha256=None) if path.startswith(HUB):
            return hub_state(label, parse_address(path, "main")[0])
        case FileConversations(path=path, sha256=None):
            local = str(Path(path).expanduser())
            return {label: state_of(local if is_bare(path) else path)}
    return {}
