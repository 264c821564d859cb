"""How time, memory and bytes of the data stages grow with the number of images.

Run it from the repository root: `python tests/benchmarks/data_stages.py`. For each size a dataset
in COCO's and LLaVA's formats is made, of five captions and one conversation per image. Each stage
runs in a process of its own. Seconds are those of the stage's function; memory is the most that the
process held, imports included. The exponent is that of a power law fitted to processor seconds,
which other load on the machine changes least. Goals: an exponent of at most 1.05, at most 2 GB.

`examples-again` is `examples` with all tokens known from the artifact of `examples`, as where a
recipe changes what is kept, or a few texts are added.

`features` embeds with a tiny encoder of random weights, up to --features images: what it costs at
full size is the encoder's forward pass (`feature_extraction.py`).
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

# A file run by its path finds only its own folder; the packages lie two folders up.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

AGAIN = "-again"
STAGES = ("images", "conversations", "examples", f"examples{AGAIN}", "features")
GOAL_EXPONENT, GOAL_BYTES = 1.05, 2e9


def recipe(dataset: Path) -> Any:
    """Return the preset `coco` on a made dataset, without a limit on images."""
    from pipeline.recipe.presets import preset

    talk = {"kind": "file", "path": str(dataset / "conversations.json"), "sha256": None}
    return preset("coco").override(
        {
            "images.source": {"kind": "folder", "root": str(dataset)},
            "images.limit": 10**9,
            "images.test_limit": 10**9,
            "conversations.source": talk,
        }
    )


def write_backbones(folder: Path) -> None:
    """Write a tiny CLIP of random weights, and a tokenizer of 8,000 tokens in Phi's layout."""
    from model.tiny_phi import train_tokenizer
    from tests.benchmarks.helpers.made_dataset import Texts
    from tests.support.tiny_bundle import write_clip

    texts = Texts(1)
    tokenizer = train_tokenizer([texts.sentence(7, 14) for _ in range(20_000)], 8000, folder / "lm")
    eos = tokenizer.token_to_id("<|endoftext|>")
    (folder / "lm/config.json").write_text(json.dumps({"model_type": "phi", "eos_token_id": eos}))
    write_clip(folder / "clip")


def run_stage(name: str, dataset: Path, folder: Path) -> dict[str, float]:
    """Run one stage in this process, below `folder`, and return what it cost."""
    from pipeline.engine.dag import BY_NAME
    from pipeline.engine.processes import Files
    from pipeline.engine.stage import StageContext
    from pipeline.settings import Settings
    from tests.support.fake_stages import Quiet

    def files_of(folder: Path) -> Files:  # the tests' own imports torch, which these do without
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return Files({path.relative_to(folder).as_posix(): str(path) for path in found})

    stage, values = BY_NAME[name.removesuffix(AGAIN)], recipe(dataset)
    out, scratch = folder / name, folder / "scratch" / name
    for path in (out, scratch):
        path.mkdir(parents=True)
    settings = Settings(store=str(folder), device="cpu")
    inputs = {each: files_of(folder / each) for each in stage.inputs_with(values)}
    function = getattr(import_module(stage.module), stage.name)
    earlier = [files_of(folder / stage.name)] if name.endswith(AGAIN) else []
    context = StageContext(inputs, out, scratch, settings, Quiet(), lambda: earlier)
    wall, processor = time.perf_counter(), _processor_seconds()
    function(context, **stage.arguments(values))
    return {
        "seconds": time.perf_counter() - wall,
        "processor": _processor_seconds() - processor,
        "memory": _peak_memory(),
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }


def _peak_memory() -> int:
    """Return the most bytes that this process held, and beside it the largest of its children."""
    # Not this process's own ru_maxrss, which begins with what the process held that started it.
    own = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert own is not None
    return 1024 * (int(own[1]) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def _processor_seconds() -> float:
    return sum(os.times()[:4])


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Return the exponent of the power law that fits best."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(folder: Path, given: argparse.Namespace) -> dict[str, dict[int, dict[str, float]]]:
    """Run all stages at all sizes, print each figure, and return them."""
    from tests.benchmarks.helpers.made_dataset import write_dataset

    costs: dict[str, dict[int, dict[str, float]]] = {name: {} for name in given.stages}
    for size in given.images:
        dataset, work = folder / f"dataset-{size}", folder / f"work-{size}"
        began = time.perf_counter()
        if not dataset.is_dir():
            write_dataset(dataset, size)
        if not (work / "backbones").is_dir():
            write_backbones(work / "backbones")
        print(f"{size} images, made in {time.perf_counter() - began:.0f} s", flush=True)
        for name in given.stages:
            if name == "features" and size > given.features:
                continue
            subprocess.run(["rm", "-rf", work / name, work / "scratch"], check=True)
            command = [sys.executable, __file__, "--one", name, str(dataset), str(work)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            cost = costs[name][size] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"  {name:14} {cost['seconds']:7.1f} s, {cost['processor']:7.1f} s of processor, "
                f"{cost['memory'] / 1e6:6.0f} MB of memory, {cost['bytes'] / 1e6:7.1f} MB written",
                flush=True,
            )
    return costs


def main() -> None:
    """Print a line for each stage and size, and one for each stage's growth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 40_000, 118_000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--features", type=int, default=10_000, help="most images to embed")
    parser.add_argument("--folder", type=Path, help="keeps the datasets for the next call")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        stage, *folders = given.one
        print(json.dumps(run_stage(stage, *map(Path, folders))))
        return
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        costs = measure(given.folder or Path(name), given)
    for name, by_size in costs.items():
        grown = "measured at one size"
        if len(by_size) > 1:
            power = exponent([*by_size], [cost["processor"] for cost in by_size.values()])
            grown = f"grow as images^{power:.2f} (goal {GOAL_EXPONENT})"
        most = max((cost["memory"] for cost in by_size.values()), default=0.0)
        print(
            f"{name:14} processor seconds {grown}, {most / 1e9:.2f} GB at most "
            f"(goal {GOAL_BYTES / 1e9:.0f})"
        )


if __name__ == "__main__":
    main()
