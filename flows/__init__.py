"""The flows, the command line, the chat and the pages; the only package that imports Prefect."""

import os

# Prefect reads these when it is imported, so they are set before any flow can be imported. The
# first start migrates a database, which takes longer than Prefect's own limit on a small machine.
# Analytics are switched off.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# The command line prints one line for a failure; --debug prints the traceback.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
# A run that is silent for longer than deployments/lost_runs.py allows counts as crashed. Under a
# worker Prefect is imported before this file, so deployments/prefect.yaml sets the same value.
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
# On CPUs oneDNN keeps the code it has compiled for each shape of a product, 1,024 of them by
# default. Batches differ in length, so that is gigabytes of code that is hardly used again; a step
# of training needs some twenty (docs/photograph_trials.md).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
