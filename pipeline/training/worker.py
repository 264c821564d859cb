"""One of several processes of a training; started by `pipeline.engine.processes`, not by users.

`python -m pipeline.training.worker FOLDER`: FOLDER holds `request.json`. Ranks and address come
from the variables that torchrun sets. Standard input is held open by the stage.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from model.errors import ModelError, NotFiniteError
from pipeline.engine.dag import BY_NAME
from pipeline.engine.processes import Files, World
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.interpreter import importing, leave_quickly
from pipeline.progress import ConsoleReporter
from pipeline.recipe.parts import FinetunePart, PretrainPart
from pipeline.settings import Settings

# Seconds for the process with the real cause to fail first: a launcher ends all after a failure.
PATIENCE = 3.0
PARTS = MappingProxyType({"pretrain": PretrainPart, "finetune": FinetunePart})


def work(folder: Path) -> None:
    """Prepare the training of a request and take part in it."""
    from pipeline.training.loop import fit

    request = json.loads((folder / "request.json").read_text())
    context = StageContext(
        inputs={name: Files(files) for name, files in request["inputs"].items()},
        out=Path(request["out"]),
        scratch=Path(request["scratch"]),
        settings=Settings.model_validate(request["settings"]),
        report=ConsoleReporter(),
    )
    world = world_of(os.environ)
    part = PARTS[request["stage"]].model_validate(request["part"])
    with importing():
        prepare = import_module(BY_NAME[request["stage"]].module).prepare
    fit(context, prepare(context, part, request["seed"]), world)


def world_of(variables: Mapping[str, str]) -> World:
    """Return the rank and world size that torchrun's variables give.

    Raises:
        PipelineError: They are missing, or the machines have different numbers of processes.
    """
    names = ("RANK", "WORLD_SIZE", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE")
    if missing := [name for name in names if name not in variables]:
        raise PipelineError(
            f"the launcher does not set {', '.join(missing)}",
            "PHIVISION_LAUNCHER is a torchrun command, e.g. torchrun --nproc-per-node 2",
        )
    rank, processes, machines, local = (int(variables[name]) for name in names)
    if machines * local != processes:
        raise PipelineError(
            f"{processes} processes cannot be {local} on each of {machines} machines",
            "give all machines the same --nproc-per-node",
        )
    return World(rank, processes, machines)


def _end_with_stage() -> None:
    """End this process when the stage's process ends, even if that was killed."""
    while os.read(0, 1024):  # `sys.stdin` would be locked when the interpreter ends
        pass
    os._exit(1)


def main() -> None:
    """Do the work; an expected error is written to a file for the stage, which reports it."""
    leave_quickly()
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_stage, daemon=True).start()
    try:
        work(folder)
    except (PipelineError, ModelError) as error:
        hearsay = isinstance(error.__cause__, NotFiniteError) and not error.__cause__.own
        said = {"message": error.message, "remedy": error.remedy, "hearsay": hearsay}
        (folder / f"error-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(said))
        sys.stdout.flush()
        if hearsay:
            time.sleep(PATIENCE)
        os._exit(1)  # a normal exit would wait for the process group, where the others may wait


if __name__ == "__main__":
    main()
