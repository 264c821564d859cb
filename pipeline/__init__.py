"""The recipe, the stages and the DAG: plain functions from input artifacts to files."""
