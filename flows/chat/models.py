"""The models that a chat offers: loaded when they are chosen, a few of them kept in memory.

Each has an engine of its own, which alone uses it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flows.chat.errors import ChatError, explained
from flows.inference.engine import Engine
from model.assistant import Assistant


@dataclass(frozen=True)
class Offer:
    """A model that can be chosen.

    Attributes:
        label: What the page calls it.
        load: Reads it from disk, which may take seconds, and raises ModelError where it cannot.
    """

    label: str
    load: Callable[[], Assistant]


class Models:
    """Models by name, of which those used last are kept in memory.

    Args:
        offers: All that can be chosen, the one that answers unasked first.
        kept: How many are in memory at the same time.
        loaded: The first one.
    """

    def __init__(self, offers: Mapping[str, Offer], kept: int, loaded: Assistant) -> None:
        self.offers, self.kept = dict(offers), kept
        self.first = next(iter(self.offers))
        self._loaded = OrderedDict({self.first: Engine(loaded)})
        self._loading, self._using = threading.Lock(), threading.Lock()

    def get(self, name: str = "") -> Assistant:
        """Return a model; see `engine`."""
        return self.engine(name).assistant

    def engine(self, name: str = "") -> Engine:
        """Return what writes a model's answers; "" is the first one.

        Raises:
            ChatError: There is no such model, or it cannot be loaded.
        """
        name = name or self.first
        if name not in self.offers:
            raise ChatError("There is no such model here. Please choose another one.")
        engine = self._used(name)
        if engine is not None:
            return engine
        with self._loading:  # of two visitors who choose the same model one loads it
            engine = self._used(name)
            if engine is None:
                self._make_room()
                with explained():
                    engine = Engine(self.offers[name].load())
                with self._using:
                    self._loaded[name] = engine
            return engine

    def label(self, name: str = "") -> str:
        """Return what the page calls a model."""
        return self.offers[name or self.first].label

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Label and name of each model, as Gradio's dropdown takes them."""
        return [(offer.label, name) for name, offer in self.offers.items()]

    def _used(self, name: str) -> Engine | None:
        with self._using:
            if name in self._loaded:
                self._loaded.move_to_end(name)
            return self._loaded.get(name)

    def _make_room(self) -> None:
        """Drop what was used longest ago before another model is read, not after."""
        with self._using:
            while len(self._loaded) >= self.kept:
                self._loaded.popitem(last=False)


def only(assistant: Assistant) -> Models:
    """Return one model that is there already, as in a Space."""
    name = str(assistant.card["name"])
    return Models({name: Offer(name, lambda: assistant)}, 1, assistant)
