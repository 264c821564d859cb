"""Prefect: the server, the task, the reporter. With the two flows the only users of it."""
