"""What `images` and `examples` cost on 1, 2 and 4 Dask workers, in processor seconds and by clock.

Run it from the repository root: `python tests/benchmarks/data_fan_out.py`. `features` is in
`fan_out.py`. Of a dataset in COCO's and LLaVA's formats, whose images have COCO's usual size, both
stages are made in turns by one process, of one thread, and with the workers; their files must be
the same bytes. Before the first turn the workers make everything once, so that what they import is
loaded. Processor seconds are those of all processes, the scheduler among them; the clock says
something only where each worker has a core, and this process uses one, too.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from distributed import Client

from flows.runner.fan_out import fan_out, local_cluster
from pipeline.engine.dag import BY_NAME
from pipeline.engine.stage import FanOut, StageContext
from pipeline.settings import Settings
from tests.benchmarks.data_stages import recipe, write_backbones
from tests.benchmarks.helpers.cluster_costs import (
    HEAD,
    Cost,
    print_sides,
    processor_seconds,
    timed,
)
from tests.benchmarks.helpers.extraction_inputs import made_images
from tests.benchmarks.helpers.made_dataset import write_dataset
from tests.support.fake_stages import Quiet
from tests.support.training_inputs import files_of

STAGES = ("images", "examples")


class Runs:
    """Runs stages on one dataset.

    Args:
        folder: Of all files.
        images: How many.
    """

    def __init__(self, folder: Path, images: int) -> None:
        self.folder, self.images = folder / "artifacts", images
        write_dataset(folder / "dataset", images, bodies=[*made_images(16)])
        self.recipe = recipe(folder / "dataset")
        write_backbones(self.folder / "backbones")
        for stage in ("images", "conversations"):
            self.run(stage, None)

    def run(self, name: str, spread: FanOut | None) -> None:
        """Run one stage anew."""
        out, scratch = self.folder / name, self.folder.parent / "scratch"
        for folder in (out, scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        stage = BY_NAME[name]
        inputs = {each: files_of(self.folder / each) for each in stage.inputs_with(self.recipe)}
        settings = Settings(store=str(self.folder), device="cpu", threads=1)
        context = StageContext(inputs, out, scratch, settings, Quiet(), fan_out=spread)
        getattr(import_module(stage.module), name)(context, **stage.arguments(self.recipe))

    def digest(self, name: str) -> str:
        """Return a digest of the files of a stage."""
        found = hashlib.sha256()
        for path in sorted((self.folder / name).iterdir()):
            found.update(path.name.encode() + path.read_bytes())
        return found.hexdigest()


def measure(runs: Runs, stage: str, workers: int, repeats: int) -> None:
    """Print the lines of one process and of so many workers."""
    alone: list[Cost] = []
    spread_out: list[Cost] = []
    runs.run(stage, None)
    expected, began = runs.digest(stage), time.perf_counter()
    with local_cluster(workers) as cluster, Client(cluster) as client:
        spread = fan_out(client.scheduler.address)
        runs.run(stage, spread)
        ready = Cost(time.perf_counter() - began, sum(client.run(time.process_time).values()))
        sides = [
            (alone, partial(runs.run, stage, None), time.process_time),
            (spread_out, partial(runs.run, stage, spread), partial(processor_seconds, client)),
        ]
        for turn in range(repeats):
            for costs, make, processor in sides[:: -1 if turn % 2 else 1]:
                costs.append(timed(make, processor))
                assert runs.digest(stage) == expected
    print_sides(alone, spread_out, workers, runs.images, ready)


def main() -> None:
    """Print a table for each stage, with two lines for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--images",
        type=int,
        nargs=2,
        default=[4096, 20_000],
        metavar="IMAGES",
        help="of the stage images, and of the stage examples",
    )
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    for stage in given.stages:
        images = given.images[STAGES.index(stage)]
        with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
            runs = Runs(Path(name), images)
            cores = len(os.sched_getaffinity(0))
            print(f"{stage}, {images} images, {cores} cores, {given.repeats} turns\n{HEAD}")
            for workers in given.workers:
                measure(runs, stage, workers, given.repeats)


if __name__ == "__main__":
    main()
