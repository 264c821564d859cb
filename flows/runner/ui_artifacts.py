"""What a person reads in Prefect's UI: the names of runs, the plan, each stage, the scores."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.pages.page import jpeg_uri
from flows.printing import metric_name
from flows.runner.generations import generations
from pipeline.catalog.catalog import Catalog
from pipeline.engine.materialize import Outcome
from pipeline.engine.plan import Step
from pipeline.evaluation.shown_metrics import SHOWN_METRICS
from pipeline.recipe.recipe import Recipe, flatten
from storage.errors import redact
from storage.store.artifacts import ArtifactStore

FIGURES = 5  # shown on a stage's line; the Prefect artifact has all
CHANGES = 2  # shown in a run's name
CONDITIONS = ("real", "shuffled", "blind")
CAPTIONS = 6  # shown in the artifact of a run, whose text holds their images
SIDE = 112  # pixels of such an image
# The names of the states that a run ends in. Prefect's events have these names, so code that waits
# for the end of a run must know all of them.
COMPLETED, CACHED, NOT_PUBLISHED, NOTHING_NEW = ENDINGS = (
    "Completed",
    "Cached",
    "Not published",
    "Nothing new",
)


def run_title(parameters: Mapping[str, Any]) -> str:
    """Return the name of a flow run: its preset and what was changed in it."""
    changes = dict(parameters.get("overrides") or {})
    shown = [redact(f"{path}={value}") for path, value in list(changes.items())[:CHANGES]]
    more = len(changes) - len(shown)
    forced = [f"rerun {stage}" for stage in parameters.get("rerun") or ()]
    parts = [str(parameters["preset"]), *shown, *([f"+{more} more"] if more else []), *forced]
    return " · ".join(parts)


def describe(outcome: Outcome) -> str:
    """Return one line about a stage: name, status, seconds and its figures."""
    scalars = [(k, v) for k, v in outcome.manifest.summary.items() if not isinstance(v, dict)]
    figures = "  ".join(f"{key}={value}" for key, value in scalars[:FIGURES])
    return f"{outcome.stage:<13} {outcome.status:<7} {outcome.seconds:7.1f} s  {figures}"


def state_line(outcome: Outcome) -> str:
    """Return the text beside a task run's state."""
    figures = describe(outcome).split(" s  ", 1)[-1].strip()
    if outcome.status == "cached":
        return f"nothing to do: {figures}" if figures else "nothing to do"
    return f"made in {outcome.seconds:.1f} s: {figures}"


def show_plan(steps: Sequence[Step]) -> None:
    """Show which stages are going to run, and why."""
    rows = [{"stage": s.stage, "status": s.status, "reason": s.reason or "-"} for s in steps]
    stale = [step.stage for step in steps if step.status != "fresh"]
    about = f"To look at or make: {', '.join(stale)}" if stale else "Every stage is fresh"
    create_table_artifact(rows, key="plan", description=about)


def show_stage(outcome: Outcome) -> None:
    """Show all figures of one stage and what it left in the store."""
    manifest = outcome.manifest
    figures = "\n".join(f"| {k} | {_cell(v)} |" for k, v in flatten(dict(manifest.summary)))
    size = sum(record.bytes for record in manifest.files) / 1e6
    text = (
        f"# {outcome.stage}: {outcome.status}\n\n| figure | value |\n|---|---|\n{figures}\n\n"
        f"{len(manifest.files)} files, {size:.1f} MB, made in {manifest.seconds:.1f} s\n\n"
        f"fingerprint `{manifest.fingerprint[:16]}`, digest `{manifest.digest[:16]}`"
    )
    create_markdown_artifact(
        text, key=f"stage-{outcome.stage}", description=f"{outcome.stage}: {state_line(outcome)}"
    )


def show_run(run: str, recipe: Recipe, store: ArtifactStore, outcomes: Sequence[Outcome]) -> None:
    """Show what a run ended with: stages, held-out scores, and how to look further."""
    made = [outcome.stage for outcome in outcomes if outcome.status == "made"]
    stages = "\n".join(
        f"| {o.stage} | {o.status} | {o.seconds:.1f} | `{o.manifest.digest[:16]}` |"
        for o in outcomes
    )
    metrics = _metrics(store, outcomes)
    text = (
        f"# {recipe.publish.name}: run {run}\n\n"
        f"{_scores(metrics, 'Held-out scores', main=True)}"
        f"{_captions(Catalog(store, run))}"
        f"## Stages\n\n| stage | status | seconds | digest |\n|---|---|---|---|\n{stages}\n\n"
        f"{_scores(metrics, 'All held-out scores', main=False)}"
        f"Store: `{store.uri}`. `phivision show`, `phivision scores` and `phivision sql` "
        f"look inside; `phivision chat` talks to the assistant."
    )
    create_markdown_artifact(text, key="run", description=summary_line(run, made, outcomes))


def summary_line(run: str, made: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """Return the text beside the state of a flow run."""
    if not made:
        return f"run {run}: nothing to do, all {len(outcomes)} stages are cached"
    return f"run {run}: {len(made)} of {len(outcomes)} stages made ({', '.join(made)})"


def _metrics(store: ArtifactStore, outcomes: Sequence[Outcome]) -> list[Mapping[str, Any]]:
    """Return the metrics of the finetuned model, none where nothing was evaluated."""
    for outcome in outcomes:
        if outcome.stage == "evaluate" and "metrics.json" in _names(outcome):
            path = store.artifact(outcome.manifest).path("metrics.json")
            return [row for row in json.loads(path.read_text()) if row["stage"] == "finetune"]
    return []


def _scores(metrics: Sequence[Mapping[str, Any]], title: str, *, main: bool) -> str:
    """Return a section with a table of scores, "" where there are none."""
    cells: dict[str, dict[str, float]] = {}
    for row in metrics:
        shown = SHOWN_METRICS.get(row["metric"])
        if not main:
            cells.setdefault(metric_name(row), {})[row["condition"]] = row["value"]
        elif shown and shown.main:
            cells.setdefault(row["metric"], {})[row["condition"]] = row["value"]
    lines = [
        f"| {metric} | " + " | ".join(_cell(values.get(name, "")) for name in CONDITIONS) + " |"
        for metric, values in cells.items()
    ]
    head = "| metric | real image | another image | no image |\n|---|---|---|---|"
    return "\n".join([f"## {title}\n", head, *lines, "\n"]) if lines else ""


def _captions(catalog: Catalog) -> str:
    """Return a table of generated captions with their images, "" where nothing was evaluated."""
    lines = [
        f"| {_inline(image)} | {_cell(real)} | {_cell(shuffled)} | {_cell(people)} |"
        for image, kind, _, people, real, shuffled, _ in generations(catalog, CAPTIONS, SIDE)
        if kind == "caption"
    ]
    if not lines:
        return ""
    head = "| image | the model writes | with another image | people wrote |\n|---|---|---|---|"
    return "\n".join(["## Held-out captions\n", head, *lines, "\n"])


def _inline(image: Image.Image | None) -> str:
    return "" if image is None else f"![]({jpeg_uri(image)})"


def _names(outcome: Outcome) -> set[str]:
    return {record.name for record in outcome.manifest.files}


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
