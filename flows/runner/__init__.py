"""Prefect's server, the task and the reporter. Only these and the two flows use Prefect."""
