"""One of several processes of a training; started by `pipeline.processes`, not by people.

`python -m pipeline.train_worker FOLDER PARENT`: FOLDER holds `request.json`, PARENT is the process
id of the stage. Rank and address come from torch's usual variables.
"""

import json
import os
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from model.errors import ModelError
from pipeline.errors import PipelineError
from pipeline.processes import Files, Place
from pipeline.progress import ConsoleReporter
from pipeline.recipe_parts import FinetunePart, PretrainPart
from pipeline.settings import Settings
from pipeline.stage import StageContext

PARTS = MappingProxyType({"pretrain": PretrainPart, "finetune": FinetunePart})


def work(folder: Path) -> None:
    """Prepare the training of a request and take part in it."""
    from pipeline.train_loop import fit

    request = json.loads((folder / "request.json").read_text())
    context = StageContext(
        inputs={name: Files(files) for name, files in request["inputs"].items()},
        out=Path(request["out"]),
        scratch=Path(request["scratch"]),
        settings=Settings.model_validate(request["settings"]),
        report=ConsoleReporter(),
    )
    place = Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    part = PARTS[request["stage"]].model_validate(request["part"])
    prepare = import_module(f"pipeline.{request['stage']}").prepare
    fit(context, prepare(context, part, request["seed"]), place)


def _end_with(parent: int) -> None:
    """End this process when the stage's process is gone, killed ones included."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Do the work; an expected error is written down for the stage, which tells it."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        work(folder)
    except (PipelineError, ModelError) as error:
        (folder / f"error-{os.environ['RANK']}.json").write_text(json.dumps(str(error)))
        sys.stdout.flush()
        os._exit(1)  # the others may wait in the process group, which an orderly end would join


if __name__ == "__main__":
    main()
