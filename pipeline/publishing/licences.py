"""The licences of the data and the weights of a recipe, as far as their owners state them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, get_args

from model.encoder_table import encoder_line, is_timm
from pipeline.hub.snapshots import HUB, is_name, parse_address
from pipeline.recipe.data_sources import APACHE, UNKNOWN, OneImageSource


@dataclass(frozen=True)
class Origin:
    """Where one part of an assistant comes from.

    Attributes:
        part: images, conversations, encoder, second encoder, language model, or start: the
            assistant with which training began.
        what: Its name.
        licence: Its licence, in words.
        repository: Its repository on the Hugging Face Hub, if it has one.
    """

    part: str
    what: str
    licence: str
    repository: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether phivision made it."""
        return self.licence == APACHE


# Licences as stated by the owners' pages.
_KNOWN: Mapping[str, str] = MappingProxyType(
    {
        "liuhaotian/LLaVA-Instruct-150K": "CC BY-NC 4.0, and OpenAI's terms of use: "
        "**not for commercial use**",
        "microsoft/phi-2": "MIT",
        "openai": "MIT",
    }
)


def origins(recipe: Mapping[str, Any]) -> list[Origin]:
    """Return where images, conversations, if there are any, and weights of a recipe come from."""
    backbones = recipe["backbones"]
    if backbones["kind"] == "tiny":
        models = [
            Origin("encoder", "a tiny CLIP, trained on these images", APACHE),
            Origin("language model", "a tiny Phi, trained on these texts", APACHE),
        ]
    else:
        models = [_encoder("encoder", backbones["clip_name"], backbones["clip_pretrained"])]
        if second := backbones.get("second_name"):  # which recipes of earlier versions lack
            models.append(_encoder("second encoder", second, backbones["second_pretrained"]))
        models.append(_language_model(backbones))
    talk = recipe["conversations"]["source"]
    spoken = [_conversations(each) for each in _each(talk) if each["kind"] != "none"]
    start = recipe.get("pretrain", {}).get("start")
    begun = [_start(start)] if start else []
    seen = [_images(each) for each in _each(recipe["images"]["source"])]
    return [*seen, *spoken, *models, *begun]


def _each(source: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the sources of a mixture, or the one source."""
    return source["sources"].values() if source["kind"] == "mixture" else (source,)


def _start(place: str) -> Origin:
    """Return the assistant that training began with; of a path only the last folder is shown."""
    if not place.startswith(HUB):
        name = PurePosixPath(place).name
        return Origin("start", f"an earlier assistant, the bundle {name}", UNKNOWN)
    repository, _ = parse_address(place, "main")
    named = f"{repository.name} at {repository.revision}"
    return Origin("start", named, _licence(repository.name), repository.name)


def _encoder(part: str, name: str, weights: str) -> Origin:
    tags = {} if is_timm(name) else encoder_line(name).tags
    name = name if is_timm(name) else f"CLIP {name}"
    if weights not in tags:  # a path or an address that stays private, or what is left of one
        return Origin(part, f"{name}, with weights from elsewhere", UNKNOWN)
    return Origin(part, f"{name} ({weights})", _licence(weights))


def _language_model(backbones: Mapping[str, Any]) -> Origin:
    name = backbones["lm_repository"].removeprefix(HUB).partition("@")[0]
    if not is_name(name):
        return Origin("language model", "a language model from elsewhere", UNKNOWN)
    return Origin("language model", name, _licence(name), name)


def _images(source: Mapping[str, Any]) -> Origin:
    kinds = {kind.model_fields["kind"].default: kind for kind in get_args(OneImageSource)}
    known = kinds[source["kind"]]
    return Origin("images", known.title, known.licence)


def _conversations(source: Mapping[str, Any]) -> Origin:
    if source["kind"] == "demo":
        return Origin("conversations", "questions about the rendered shapes", APACHE)
    if source["kind"] == "hub":
        name = source["repository"]
        return Origin("conversations", name, _licence(name), name)
    return Origin("conversations", "a file in LLaVA-Instruct's format", UNKNOWN)


def _licence(name: str) -> str:
    return _KNOWN.get(name, "stated by its repository")
