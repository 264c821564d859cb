"""Running the flow elsewhere and on a schedule: deployments of `full-pipeline`."""
