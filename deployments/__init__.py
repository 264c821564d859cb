"""What runs the flow elsewhere and later: deployments of `full-pipeline`."""
