"""Serve the deployments of `full-pipeline` from one process: `python -m deployments.serve`.

With a Prefect server (`prefect server start`, PREFECT_API_URL set) this process waits for runs:
`prefect deployment run full-pipeline/demo`. It needs no work pool and no worker. The presets'
numbers stay in the presets; a deployment only names one.
"""

from prefect import serve
from prefect.deployments.runner import RunnerDeployment

from flows.full_pipeline import full_pipeline
from pipeline.presets import PRESETS


def deployments() -> list[RunnerDeployment]:
    """Return one deployment per preset, named after it."""
    made = []
    for name in PRESETS:
        deployment = full_pipeline.to_deployment(
            name, parameters={"preset": name}, tags=["phivision"]
        )
        assert isinstance(deployment, RunnerDeployment)  # a coroutine only in async code
        made.append(deployment)
    return made


if __name__ == "__main__":
    serve(*deployments())
