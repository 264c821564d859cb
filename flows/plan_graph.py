"""The plan as a graph in Mermaid, which GitHub, GitLab and many editors draw."""

from collections.abc import Sequence

from pipeline.engine.dag import BY_NAME
from pipeline.engine.plan import Step
from pipeline.recipe.recipe import Recipe

# Status → fill and border, readable on light and dark pages.
_COLOURS = {
    "fresh": ("#d8f0dd", "#2e7d43"),
    "stale": ("#fde2c4", "#b45f06"),
    "unknown": ("#e7e7ee", "#6b6b80"),
}


def mermaid(recipe: Recipe, steps: Sequence[Step]) -> str:
    """Return a flowchart: one node for each stage with its status, and what made it fresh.

    An input that another input was made of has no arrow of its own.

    Args:
        recipe: The recipe, which decides some of the inputs.
        steps: The verdict on each stage.
    """
    before: dict[str, set[str]] = {}  # all that a stage was made of, directly or not
    nodes, arrows = [], []
    for step in steps:
        inputs = BY_NAME[step.stage].inputs_with(recipe)
        implied = {name for each in inputs for name in before[each]}
        before[step.stage] = implied | set(inputs)
        label = "<br/>".join(_label(step))
        nodes.append(f'    {step.stage}["{label}"]:::{step.status}')
        arrows += [f"    {name} --> {step.stage}" for name in inputs if name not in implied]
    styles = [
        f"    classDef {status} fill:{fill},stroke:{border},color:#1c1c24"
        for status, (fill, border) in _COLOURS.items()
    ]
    return "\n".join(["flowchart TD", *nodes, *arrows, *styles])


def _label(step: Step) -> list[str]:
    made = step.manifest
    if step.status != "fresh" or made is None:
        return [f"<b>{step.stage}</b>", step.status]
    size = sum(record.bytes for record in made.files)
    return [
        f"<b>{step.stage}</b>",
        f"{step.status}, {made.seconds:,.1f} s, {size / 1e6:,.1f} MB",
        made.digest[:12],
    ]
