"""The part of lmms-eval that a model of it touches, where the package itself is not installed.

Names, signatures and the order of arguments are those of lmms-eval 0.7; nothing is computed here.
"""

import abc
import importlib.util
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest


@dataclass
class Instance:
    """A request; arguments: context, settings or answer, doc_to_visual, doc, task, split."""

    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


class CacheHook:
    """Told of every answer as soon as it is known."""

    def __init__(self, cachinglm: Any = None) -> None:
        self.told: list[tuple[str, Any, str]] = []

    def add_partial(self, attr: str, req: Any, res: str) -> None:
        self.told.append((attr, req, res))


class Lmms(abc.ABC):
    """The interface of models."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook()
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank

    @abc.abstractmethod
    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]: ...

    @abc.abstractmethod
    def generate_until(self, requests: list[Instance]) -> list[str]: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]: ...


@dataclass(frozen=True)
class ModelManifest:
    """How a package tells its models."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


def use_interface(patch: pytest.MonkeyPatch) -> type:
    """Make `lmms_eval` importable, the real one if there is one, and return its `Instance`."""
    if importlib.util.find_spec("lmms_eval") is not None:
        from lmms_eval.api.instance import Instance as Real  # ty: ignore[import-not-found]

        return Real
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.instance": {"Instance": Instance},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        patch.setitem(sys.modules, name, module)
    return Instance
