"""The plan as a graph in Mermaid, which GitHub, GitLab and many editors draw."""

from collections.abc import Mapping, Sequence

from flows.run_view import duration
from flows.stage_arrows import arrows
from pipeline.engine.dag import BY_NAME
from pipeline.engine.plan import Step
from pipeline.recipe.recipe import Recipe

# Status → fill and border, readable on light and dark pages.
_COLOURS = {
    "fresh": ("#d8f0dd", "#2e7d43"),
    "stale": ("#fde2c4", "#b45f06"),
    "unknown": ("#e7e7ee", "#6b6b80"),
}


def mermaid(
    recipe: Recipe,
    steps: Sequence[Step],
    seconds: Mapping[str, float | None],
    hours: Mapping[str, float],
) -> str:
    """Return a flowchart: a node for each stage with its status and what it took or will take."""
    inputs = {step.stage: BY_NAME[step.stage].inputs_with(recipe) for step in steps}
    nodes = [
        f'    {step.stage}["{"<br/>".join(_label(step, seconds, hours))}"]:::{step.status}'
        for step in steps
    ]
    lines = [f"    {source} --> {target}" for source, target in arrows(inputs)]
    styles = [
        f"    classDef {status} fill:{fill},stroke:{border},color:#1c1c24"
        for status, (fill, border) in _COLOURS.items()
    ]
    return "\n".join(["flowchart TD", *nodes, *lines, *styles])


def _label(
    step: Step, seconds: Mapping[str, float | None], hours: Mapping[str, float]
) -> list[str]:
    name, made = f"<b>{step.stage}</b>", step.manifest
    if step.status == "fresh" and made is not None:
        size = sum(record.bytes for record in made.files)
        took = f"{step.status}, {made.seconds:,.1f} s, {size / 1e6:,.1f} MB"
        return [name, took, made.digest[:12]]
    expected = seconds.get(step.stage)
    lines = [name, step.status if expected is None else f"{step.status}, ≈ {duration(expected)}"]
    return [*lines, f"{hours[step.stage]:.3g} GPU hours"] if step.stage in hours else lines
