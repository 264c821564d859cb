"""The only room that imports Prefect: the flow, the command line, and nothing else."""
