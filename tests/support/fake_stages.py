"""A DAG of three small stages that count how often they run, for tests of the runner.

`numbers` → `sums` → `report`. Each appends a line to the file of the environment variable
`PHIVISION_CALLS`, so that several processes can be counted together.

`python -m tests.support.fake_stages STORE` makes all three, as a run of the pipeline does.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.materialize import Outcome, materialize
from pipeline.engine.runs import record_run
from pipeline.engine.stage import Stage, StageContext, Summary
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore

SHARDS = 5


@dataclass(frozen=True)
class FakeStage(Stage):
    """A stage whose function is given, so that it needs no module of its own."""

    module: str = ""
    call: Callable[..., Summary] = lambda *_, **__: {}

    def function(self) -> Callable[..., Summary]:
        """Return the given function."""
        return self.call


class Quiet:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.said.append(text)

    def track(self, label: str, total: int | None, done: int = 0) -> Any:
        """Return a bar that nobody sees."""
        return nullcontext(lambda amount=1, note="": None)


def count(name: str) -> None:
    """Write down that a stage ran."""
    if path := os.environ.get("PHIVISION_CALLS"):
        with Path(path).open("a") as stream:
            stream.write(f"{name}\n")


def calls(path: Path) -> list[str]:
    """Return which stages ran, in order."""
    return path.read_text().split() if path.exists() else []


def numbers(context: StageContext, seed: int, **_: Any) -> Summary:
    """Write shards one by one into the workspace, slowly, and resume where a kill stopped it."""
    count("numbers")
    for shard in range(SHARDS):
        path = context.scratch / f"{shard}.txt"
        if not path.is_file():
            count(f"shard-{shard}")
            time.sleep(float(os.environ.get("PHIVISION_SLOW", "0")))
            partial = path.with_suffix(".tmp")
            partial.write_text(f"{seed * 100 + shard}\n")
            partial.replace(path)
        os.link(path, context.out / path.name)
    return {"shards": SHARDS}


def sums(context: StageContext, seed: int) -> Summary:
    """Write the sum's last digit, so that different numbers may give the same sum."""
    del seed
    count("sums")
    paths = context.inputs["numbers"].paths("*.txt")
    total = sum(int(path.read_text()) for path in paths)
    (context.out / "sum.json").write_text(json.dumps(total % 10))
    return {"sum": total}


def report(context: StageContext, seed: int) -> Summary:
    """Write a text about the sum."""
    del seed
    count("report")
    text = context.inputs["sums"].path("sum.json").read_text()
    (context.out / "report.md").write_text(f"The last digit is {text}.\n")
    return {}


FAKE_DAG: tuple[FakeStage, ...] = (
    FakeStage("numbers", reads=("publish",), call=numbers),
    FakeStage("sums", inputs=("numbers",), call=sums),
    FakeStage("report", inputs=("sums",), call=report),
)


def make(
    store: ArtifactStore,
    settings: Settings,
    recipe: Recipe,
    *,
    stages: Sequence[Stage] = FAKE_DAG,
    rerun: Sequence[str] = (),
    reporter: Quiet | None = None,
) -> dict[str, Outcome]:
    """Make all stages, as a run does, and record the run."""
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        inputs = {name: outcomes[name].manifest for name in stage.inputs}
        outcomes[stage.name] = materialize(
            stage,
            recipe,
            inputs,
            store,
            settings,
            reporter or Quiet(),
            force=stage.name in rerun,
        )
    record_run(store, recipe, list(outcomes.values()))
    return outcomes


if __name__ == "__main__":
    chosen = Settings(store=sys.argv[1], workdir=Path(sys.argv[2]))
    place = ArtifactStore(chosen.store, chosen.work / "cache")
    for outcome in make(place, chosen, preset("demo")).values():
        print(outcome.stage, outcome.status, outcome.manifest.digest, flush=True)
