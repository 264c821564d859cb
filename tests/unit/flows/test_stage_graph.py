"""The drawing of a run's stages: every stage a box, none over another, arrows between them."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from flows.pages.stage_graph import BOX, HEIGHT, WIDTH, stage_graph
from pipeline.engine.dag import DAG
from pipeline.recipe.presets import preset


def manifests(name: str) -> dict[str, Any]:
    """Return the manifests of a run of a preset, as far as the drawing reads them."""
    recipe = preset(name)
    return {
        stage.name: SimpleNamespace(
            stage=stage.name,
            payload={"inputs": dict.fromkeys(stage.inputs_with(recipe), "")},
            files=[SimpleNamespace(bytes=1_500_000)],
            seconds=1234.5,
            digest=f"{at:02}" * 32,
        )
        for at, stage in enumerate(DAG)
    }


@pytest.mark.parametrize("name", ["demo", "coco"])  # with three, or two, stages at the top
def test_every_stage_is_below_what_it_was_made_of(name: str) -> None:
    made = manifests(name)
    graph = stage_graph(made, ["publish"])
    assert graph is not None
    boxes = {box.stage: box for box in graph["boxes"]}
    assert list(boxes) == [stage.name for stage in DAG]
    for stage, manifest in made.items():
        assert all(boxes[one].y + HEIGHT < boxes[stage].y for one in manifest.payload["inputs"])
    for one in boxes.values():
        assert one.x >= 0
        assert one.x + BOX <= WIDTH
        others = [each for each in boxes.values() if each.y == one.y]
        for left, right in pairwise(sorted(others, key=lambda each: each.x)):
            assert left.x + BOX < right.x
    assert graph["height"] > max(box.y for box in boxes.values()) + HEIGHT
    assert len(graph["arrows"]) >= len(DAG) - 1
    assert [box.stage for box in boxes.values() if box.status == "made"] == ["publish"]
    assert boxes["images"].figures == "1,234.5 s · 1.5 MB"


def test_a_run_without_stages_has_no_drawing_and_a_missing_input_no_arrow() -> None:
    assert stage_graph({}, []) is None
    only = {name: each for name, each in manifests("demo").items() if name == "publish"}
    graph = stage_graph(only, [])
    assert graph is not None
    assert graph["arrows"] == []
