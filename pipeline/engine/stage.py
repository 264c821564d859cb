"""A stage: a plain function from input artifacts and recipe parts to files in a folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pipeline.interpreter import importing
from pipeline.progress import Reporter
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings

Summary = Mapping[str, Any]
SourceState = Mapping[str, Mapping[str, str]]


class InputArtifact(Protocol):
    """A committed artifact as a stage sees it: names in, local paths out."""

    @property
    def names(self) -> list[str]:
        """Names of all files, sorted."""

    @property
    def packages(self) -> Mapping[str, str]:
        """Versions of the libraries that made it, as far as they are known."""

    def path(self, name: str) -> Path:
        """Return the local path of one file."""

    def paths(self, pattern: str) -> list[Path]:
        """Return local paths of the files that match a glob, sorted by name."""

    def directory(self, prefix: str) -> Path:
        """Return a local directory with all files below a prefix."""


# Calls a function with each job, in any process, and yields the results in any order.
FanOut = Callable[[Callable[[Any], int], Sequence[Any]], Iterable[int]]


@dataclass(frozen=True)
class StageContext:
    """The environment of a stage: where to read and write, and on what to run; not hashed.

    Attributes:
        inputs: Artifacts of the stages it declared, by name.
        out: Empty folder; its contents when the function returns become the artifact.
        scratch: Folder that survives a kill, for finished shards and checkpoints.
        settings: Device, threads, wandb mode.
        report: Progress bars and lines.
        earlier: Returns earlier artifacts of the same stage that the same model code made, newest
            first. They are a cache: with or without them the same bytes must come out.
        fan_out: Spreads jobs over other processes that see the same folders; None where the
            stage works in this one.
        source: State of the outside source that the fingerprint holds, so that exactly the probed
            version is fetched.
    """

    inputs: Mapping[str, InputArtifact]
    out: Path
    scratch: Path
    settings: Settings
    report: Reporter
    earlier: Callable[[], Iterable[InputArtifact]] = tuple
    fan_out: FanOut | None = None
    source: SourceState = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One node of the DAG.

    Attributes:
        name: Name of the stage, of its artifacts and of its function.
        module: Dotted name of the module that holds the function.
        inputs: Stages whose artifacts it reads.
        reads: Recipe parts that it is given; it cannot see others, so identity is complete.
        also: Returns which further parts it is given under a recipe.
        needs: Returns which further artifacts it reads under a recipe.
        code: Returns which functions the stage looks up by a recipe, as module and name.
        network: Whether it may fetch from elsewhere, so that a failure is worth a retry.
        standalone: Returns whether the stage reads no artifact at all under a recipe.
        probe: Checks the stage's outside source (a folder, a URL) and returns its state, which
            enters the fingerprint; `module:function`, called with the recipe.
    """

    name: str
    module: str
    inputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    also: Callable[[Recipe], tuple[str, ...]] | None = None
    needs: Callable[[Recipe], tuple[str, ...]] | None = None
    code: Callable[[Recipe], tuple[tuple[str, str], ...]] | None = None
    network: bool = False
    standalone: Callable[[Recipe], bool] | None = None
    probe: str | None = None

    def inputs_with(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the stages whose artifacts it reads under this recipe."""
        if self.standalone and self.standalone(recipe):
            return ()
        return (*self.inputs, *(self.needs(recipe) if self.needs else ()))

    def reads_with(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the recipe parts that it is given under this recipe, the seed left out."""
        return (*self.reads, *(self.also(recipe) if self.also else ()))

    def code_with(self, recipe: Recipe) -> tuple[tuple[str, str], ...]:
        """Return the functions that the stage looks up by this recipe, as module and name."""
        return self.code(recipe) if self.code else ()

    def source_state(self, recipe: Recipe) -> SourceState:
        """Return the state of the stage's outside source, empty where it has none.

        The state of a part is empty if it cannot be checked now, such as a branch of the Hub
        without a network; `pipeline.engine.materialize.as_last_seen` decides what is used then.
        """
        if self.probe is None:
            return {}
        module, name = self.probe.split(":")
        return getattr(import_module(module), name)(recipe)

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the recipe parts this stage reads, by name, followed by the seed."""
        return {part: getattr(recipe, part) for part in (*self.reads_with(recipe), "seed")}

    def function(self) -> Callable[..., Summary]:
        """Import and return the stage's function, which has the stage's name."""
        with importing():
            return getattr(import_module(self.module), self.name)
