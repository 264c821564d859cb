"""Runs the whole DAG of the tiny demo on one store, stage by stage, without Prefect.

`python -m tests.faults.worker STORE [dotted.path=value …]`; what it prints is for people.
"""

import sys
from pathlib import Path


def main(store_uri: str, assignments: list[str]) -> None:
    from pipeline.dag import DAG
    from pipeline.materialize import materialize
    from pipeline.presets import preset
    from pipeline.progress import ConsoleReporter
    from pipeline.runs import record_run
    from pipeline.settings import Settings
    from storage.artifacts import ArtifactStore

    changes = dict(assignment.split("=", 1) for assignment in assignments)
    recipe = preset("demo").override(changes)
    settings = Settings(store=store_uri, wandb="disabled", device="cpu", threads=1)
    outcomes = {}
    for stage in DAG:
        store = ArtifactStore(settings.store, settings.work / "cache")
        inputs = {name: outcomes[name].manifest for name in stage.inputs_with(recipe)}
        outcomes[stage.name] = materialize(
            stage, recipe, inputs, store, settings, ConsoleReporter()
        )
        print(stage.name, outcomes[stage.name].status, round(outcomes[stage.name].seconds, 2), flush=True)
    print(record_run(ArtifactStore(settings.store, settings.work / "cache"), recipe, list(outcomes.values())))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(sys.argv[1], sys.argv[2:])
