"""The plan as a graph: every stage, what it is made of, and what it took."""

import re
from pathlib import Path

import pytest

from flows.cli import main
from flows.plan_graph import mermaid
from pipeline.engine.dag import DAG
from pipeline.engine.plan import Step, plan
from pipeline.recipe.presets import preset
from storage.store.artifacts import ArtifactStore
from tests.support.small_store import build_store


def test_every_stage_has_a_node_and_arrows_from_what_it_is_made_of(tmp_path: Path) -> None:
    recipe = preset("demo")
    steps = plan(recipe, ArtifactStore(str(tmp_path / "s"), tmp_path / "c"))
    graph = mermaid(recipe, steps, {}, {})
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


def test_a_stage_says_what_it_took_or_will_take(tmp_path: Path) -> None:
    store = build_store(tmp_path, runs=1)
    (manifest,) = store.manifests("features")
    steps = [Step("features", "fresh", "", manifest), Step("pretrain", "stale", "new")]
    before = [Step(name, "stale", "new") for name in ("images", "conversations", "backbones")]
    expected = {"images": 150.0, "conversations": None}
    graph = mermaid(preset("demo"), [*before, *steps], expected, {"pretrain": 2.5})
    assert "fresh, 2.5 s" in graph
    assert manifest.digest[:12] in graph
    assert "<b>images</b><br/>stale, ≈ 2 min" in graph
    assert '"<b>conversations</b><br/>stale"' in graph
    assert "<b>pretrain</b><br/>stale<br/>2.5 GPU hours" in graph


def test_the_command_draws_gpu_hours_where_hardware_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["plan", "--store", str(tmp_path / "s"), "--format", "mermaid"]
    half = ["--set", "pretrain.precision=bf16", "--set", "finetune.precision=bf16"]
    main([*where, *half, "--hardware", "H100"])
    drawn = capsys.readouterr().out
    named = re.findall(r"<b>(\w+)</b><br/>unknown<br/>\S+ GPU hours", drawn)
    assert named == ["pretrain", "finetune", "evaluate"]
    main(where)
    assert "GPU hours" not in capsys.readouterr().out
