"""Imported once by the process that tests fork others from: all that takes long to load.

Not Prefect: it reads its variables when it is imported, and each forked command has its own.
"""

import gc
from importlib import import_module

from wandb.sdk.data_types import _private as wandb_files

from pipeline.engine.dag import DAG
from pipeline.interpreter import importing, leave_quickly

HEAVY = (
    *(stage.module for stage in DAG),
    "pipeline.backbones.tiny",
    "pipeline.training.loop",
    "model.assistant",
    "flows.cli",
    "flows.pages.report",
    # Lightning asks these two whether a checkpoint's folder is theirs: half a second a training.
    "adlfs",
    "gcsfs",
)

leave_quickly()  # no list of what its libraries leave behind
with importing():
    for name in HEAVY:
        import_module(name)
# One temporary folder for all who are forked: the first that ends must not remove it.
wandb_files.MEDIA_TMP._finalizer.atexit = False
gc.freeze()  # none of it is garbage, and no child need look at it again
