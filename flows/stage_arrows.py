"""Which arrows a drawing of the DAG needs: an input of an input has none of its own."""

from collections.abc import Iterator, Mapping, Sequence


def arrows(inputs: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield each arrow as a stage and one that is made of it."""
    before: dict[str, set[str]] = {}  # all that a stage is made of, directly or not
    for stage, names in inputs.items():
        implied = {name for each in names for name in before.get(each, ())}
        before[stage] = implied | set(names)
        yield from ((name, stage) for name in names if name not in implied)
