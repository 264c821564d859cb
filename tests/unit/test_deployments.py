"""Deployments name the presets and nothing else."""

from pipeline.presets import PRESETS


def test_there_is_a_deployment_of_every_preset() -> None:
    from deployments.serve import deployments

    made = deployments()
    assert [deployment.name for deployment in made] == list(PRESETS)
    assert {deployment.flow_name for deployment in made} == {"full-pipeline"}
    assert [deployment.parameters for deployment in made] == [{"preset": n} for n in PRESETS]
