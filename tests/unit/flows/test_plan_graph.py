"""The plan as a graph: every stage, what it is made of, and what it took."""

import re
from pathlib import Path

from flows.plan_graph import mermaid
from pipeline.engine.dag import DAG
from pipeline.engine.plan import Step, plan
from pipeline.recipe.presets import preset
from storage.store.artifacts import ArtifactStore
from tests.support.small_store import build_store


def test_every_stage_has_a_node_and_arrows_from_what_it_is_made_of(tmp_path: Path) -> None:
    recipe = preset("demo")
    graph = mermaid(recipe, plan(recipe, ArtifactStore(str(tmp_path / "s"), tmp_path / "c")))
    assert graph.startswith("flowchart TD\n")
    nodes = re.findall(r'^    (\w+)\["<b>\1</b>', graph, re.MULTILINE)
    assert nodes == [stage.name for stage in DAG]
    arrows = set(re.findall(r"^    (\w+) --> (\w+)$", graph, re.MULTILINE))
    assert ("evaluate", "publish") in arrows
    assert ("images", "publish") not in arrows  # it comes by way of others
    reached = {"images"}
    for _ in DAG:
        reached |= {target for source, target in arrows if source in reached}
    assert reached == set(nodes) - {"conversations"}


def test_a_fresh_stage_says_what_it_took(tmp_path: Path) -> None:
    store = build_store(tmp_path, runs=1)
    (manifest,) = store.manifests("features")
    steps = [Step("features", "fresh", "", manifest)]
    before = [Step(name, "stale", "new") for name in ("images", "conversations", "backbones")]
    graph = mermaid(preset("demo"), [*before, *steps])
    assert "fresh, 2.5 s" in graph
    assert manifest.digest[:12] in graph
    assert graph.count("<br/>stale") == 3
