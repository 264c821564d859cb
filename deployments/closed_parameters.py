"""Close the deployments' parameters to unknown names.

Prefect derives a deployment's schema from its flow and leaves its outermost object open. A run with
the misspelt parameter `presett` would start and silently train the deployment's own preset.
`prefect deploy` cannot close the schema, so the server's copy is closed afterwards. Running this
again changes nothing.
"""

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowFilter,
    FlowFilterName,
)

from flows.full_pipeline import full_pipeline
from flows.retrain import retrain


def close() -> None:
    """Make the server at PREFECT_API_URL refuse parameters that our flows do not have."""
    # Another project's flow may be called `retrain`, too; its deployments lack our tag.
    flows = FlowFilter(name=FlowFilterName(any_=[full_pipeline.name, retrain.name]))
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=["phivision"]))
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(flow_filter=flows, deployment_filter=ours):
            schema = {**(deployment.parameter_openapi_schema or {}), "additionalProperties": False}
            update = DeploymentUpdate(parameter_openapi_schema=schema)
            client.update_deployment(deployment.id, update)
