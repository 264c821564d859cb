"""Imported once by the process that tests fork others from: all that takes long to load.

Not Prefect: it reads its variables when it is imported, and each forked command has its own.
"""

import atexit
import gc
from importlib import import_module

from wandb.sdk.artifacts.artifact import Artifact
from wandb.sdk.data_types._private import MEDIA_TMP

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
# wandb's temporary folders belong to all who are forked: the first that ends must not remove them.
for folder in (MEDIA_TMP, Artifact._TMP_DIR):
    folder._finalizer.atexit = False
    atexit.unregister(folder.cleanup)
gc.freeze()  # none of it is garbage, and no child need look at it again
