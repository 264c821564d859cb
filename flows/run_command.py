"""`phivision run`: decided from the manifests alone where nothing is stale, else by Prefect."""

from collections.abc import Mapping, Sequence

from pipeline.materialize import Outcome
from pipeline.plan import plan
from pipeline.presets import preset as load_preset
from pipeline.runs import record_run
from pipeline.settings import Settings
from storage.artifacts import ArtifactStore


def run_pipeline(
    preset: str, changes: Mapping[str, object], settings: Settings, rerun: Sequence[str]
) -> str:
    """Make what is stale, print one line per stage, and return the name of the run."""
    recipe = load_preset(preset).override(changes)
    store = ArtifactStore(settings.store, settings.work / "cache", settings.cache_bytes)
    steps = plan(recipe, store, rerun)
    if all(step.status == "fresh" for step in steps):
        outcomes = [
            Outcome(step.stage, "cached", step.manifest, 0.0) for step in steps if step.manifest
        ]
        for step in steps:
            print(f"{step.stage:<13} cached      0.0 s  {step.reason}".rstrip())
        run = record_run(store, recipe, outcomes)
        print("nothing to do: every stage is cached")
    else:
        from flows.full_pipeline import full_pipeline

        run = full_pipeline(
            preset=preset,
            overrides=dict(changes),
            rerun=list(rerun),
            settings=settings.model_dump(mode="json"),
        )
    print(f"run {run} · store {store.uri} · `phivision sql` looks inside")
    return run
