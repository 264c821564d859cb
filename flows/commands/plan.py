"""`phivision plan`: which stages would run, why, and how long that will take."""

import json
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, Literal

from flows.plan_graph import mermaid
from flows.printing import print_rows
from flows.run_view import duration
from pipeline.costs.stage_seconds import Forecast, forecast
from pipeline.engine.plan import Step, plan
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings

LINE = 80  # characters of the line below the table


def print_plan(
    recipe: Recipe,
    settings: Settings,
    rerun: Sequence[str],
    style: Literal["table", "json", "mermaid"],
    hours: Mapping[str, float] | None = None,
) -> None:
    """Print the plan of a recipe; GPU hours by stage are shown in the graph only.

    Raises:
        PipelineError: `rerun` names an unknown stage.
        StorageError: The store or an outside source cannot be read.
    """
    store = settings.open_store()
    steps = plan(recipe, store, rerun)
    expected = forecast(recipe, store, steps, settings)
    if style == "mermaid":
        print(mermaid(recipe, steps, expected.seconds, hours or {}))
    elif style == "json":
        print(json.dumps([_record(step, expected.seconds[step.stage]) for step in steps], indent=1))
    else:
        rows = [[s.stage, s.status, _will_take(s, expected), s.reason] for s in steps]
        print_rows(["stage", "status", "will take", "reason"], rows)
        if any(step.status != "fresh" for step in steps):
            print(fill(_in_all(steps, expected), LINE, subsequent_indent="  "))


def _record(step: Step, seconds: float | None) -> dict[str, Any]:
    """Return what programs read of a stage; `made` says what a fresh one was."""
    made = step.manifest if step.status == "fresh" else None
    return {
        "stage": step.stage,
        "status": step.status,
        "reason": step.reason,
        "seconds": None if seconds is None else round(seconds, 1),
        "made": None
        if made is None
        else {
            "digest": made.digest,
            "seconds": made.seconds,
            "bytes": sum(record.bytes for record in made.files),
        },
    }


def _will_take(step: Step, expected: Forecast) -> str:
    if step.status == "fresh":
        return ""
    seconds = expected.seconds[step.stage]
    return "unknown" if seconds is None else duration(seconds)


def _in_all(steps: Sequence[Step], expected: Forecast) -> str:
    """Return how long everything will take, and where that is from."""
    unknown = expected.unknown
    stale = [step.stage for step in steps if step.status != "fresh"]
    if len(unknown) == len(stale):
        return "→ how long it takes is unknown: the store has no earlier artifacts like these"
    about = f"about {duration(expected.total)}"
    if unknown:
        about = f"at least {duration(expected.total)} without {', '.join(unknown)}"
    on = ""
    if expected.machine:
        threads = int(expected.machine["threads"])
        on = f" on {expected.machine['device']}, {threads} thread{'s' if threads > 1 else ''}"
    less = "; less where an input comes out as before"
    depends = any(step.status == "unknown" for step in steps)
    return f"→ {about}, going by earlier artifacts{on}{less if depends else ''}"
