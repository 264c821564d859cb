"""Runs every benchmark, one after the other, and prints what each prints and how each ended.

`make bench` calls it: `python tests/benchmarks/run_all.py`. What a benchmark needs is made first: a
finished run of the demo, in a store that is kept for the next call. One that needs what this
machine lacks, a GPU or photographs, is skipped and says so. A failure stops no other benchmark, and
makes the exit status 1. `--quick` takes small sizes, to see that each works; its figures say
nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


@dataclass(frozen=True)
class Benchmark:
    """How one file is called.

    Attributes:
        name: The file without its suffix.
        quick: Arguments of the smallest useful call.
        usual: Arguments where the file's own sizes take hours.
        store: Option before the demo's store, " " where it has none, "" where none is needed.
        bundle: Whether it takes the assistant that the demo has published.
        needs: What the machine must have.
        instead: Arguments where the machine lacks it; None skips the benchmark.
    """

    name: str
    quick: str = ""
    usual: str = ""
    store: str = ""
    bundle: bool = False
    needs: str = ""
    instead: str | None = None


BENCHMARKS = (
    Benchmark("data_stages", "--images 500 1000 --features 500"),
    Benchmark("tokenization", "--captions 500 --talks 100 --repeats 1 --no-datasets"),
    Benchmark("store_scale", "--manifests 90 --files 900 --s3-manifests 18 --s3-files 180 "
              "--examples 5000 --features 5000 --repeats 2"),
    Benchmark("catalog_queries", "--rows 2000 --repeats 2"),
    Benchmark("cached_run", "--no-dvc --repeats 1"),
    Benchmark("command_times", "--repeats 1", store="--store"),
    Benchmark("remote_subset", "--members 100"),
    Benchmark("feature_extraction", "--images 16 --batch 8 --repeats 1"),
    Benchmark("image_decoding", "--images 4 --repeats 1"),
    Benchmark("feature_feeding", "--shards 2 --rows 256 --batch 64 --repeats 2"),
    Benchmark("fan_out", "--images 32 --shard 16 --batch 16 --repeats 1"),
    Benchmark("data_fan_out", "--images 1200 12000 --workers 2 --repeats 1"),
    Benchmark("training_throughput", "--words 512 --images 40 --steps 2 --repeats 1"),
    Benchmark("training_memory", "--words 512 --images 2"),
    Benchmark("sampling_cost", "--rows 2 --tokens 10 --repeats 1"),
    Benchmark("objectives", "--epochs 0.05 --seeds 1 --steps 2", store=" "),
    Benchmark("evaluation_metrics", "--count 200 --resamples 100"),
    Benchmark("evaluation_speed", "--captions 8 --questions 8 --batch 4 --longest 24 --layers 2 "
              "--width 192 --vocabulary 512 --rounds 2"),
    Benchmark("explore_pages", "--rows 500 --pixels 32 --repeats 1"),
    Benchmark("chat_latency", "--repeats 2 --crowd 2", store="--store"),
    Benchmark("serving", "--count 16 --rounds 1", bundle=True),
    Benchmark("serving_soak", "--count 50 --rounds 2", bundle=True),
    Benchmark("demo_seeds", "--runs 1", usual="--runs 2"),
    Benchmark("gpu_training", "--tiny --steps 2 --warmup 1", needs="gpu", instead="--tiny"),
    Benchmark("gpu", "--tiny", needs="gpu"),
    Benchmark("plain_photos", "--steps 5 --test 8", needs="photos"),
)  # fmt: skip


def has(need: str) -> bool:
    """Return whether this machine has what a benchmark needs."""
    if need == "gpu":
        return shutil.which("nvidia-smi") is not None
    return need != "photos" or "PHIVISION_PHOTOS" in os.environ


def command(benchmark: Benchmark, store: Path, *, quick: bool) -> list[str] | None:
    """Return how a benchmark is called, None where it cannot run on this machine."""
    arguments = (benchmark.quick if quick else benchmark.usual).split()
    if not has(benchmark.needs):
        if benchmark.instead is None:
            return None
        arguments = arguments or benchmark.instead.split()
    place = [*benchmark.store.split(), str(store)] if benchmark.store else []
    if benchmark.bundle:
        place = [str(bundle_of(store))]
    if benchmark.needs == "photos":
        place = [str(ROOT / ".weights")]  # where `make realweights` puts the weights
    return [sys.executable, str(FOLDER / f"{benchmark.name}.py"), *place, *arguments]


def shown(call: Sequence[str], report: IO[str]) -> int:
    """Run a command, show and keep what it prints, and return its exit status."""
    pipe, together = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(call, stdout=pipe, stderr=together, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            report.write(line)
    return process.returncode


def bundle_of(store: Path) -> Path:
    """Return where the assistant of the demo's store is exported to."""
    return store.with_name(f"{store.name}-bundle")


def make_demo(store: Path) -> None:
    """Finish a run of the demo in a store and export its assistant; cached stages are kept."""
    shutil.rmtree(bundle_of(store), ignore_errors=True)
    preset = ["--preset", "demo", "--threads", "2", "--publish-anyway"]
    for arguments in (["run", *preset], ["export", str(bundle_of(store))]):
        call = [sys.executable, "-m", "flows.cli", *arguments, "--store", str(store)]
        if subprocess.run(call, cwd=ROOT, check=False).returncode:
            sys.exit("the demo could not be made")


def main() -> None:
    """Run them, and print a line for each at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("names", nargs="*", choices=[*names, []], help="all without any")
    parser.add_argument("--quick", action="store_true", help="small sizes: does each work?")
    parser.add_argument("--store", type=Path, default=ROOT / ".phivision-bench")
    parser.add_argument("--report", type=Path, default=ROOT / ".phivision-bench.txt")
    given = parser.parse_args()
    chosen = [each for each in BENCHMARKS if each.name in (given.names or names)]
    if any(each.store or each.bundle for each in chosen):
        make_demo(given.store)
    ended = []
    with given.report.open("w") as report:
        report.write(f"{time.strftime('%Y-%m-%d')}\n")
        for benchmark in chosen:
            title = f"\n== {benchmark.name}\n"
            print(title, flush=True)
            report.write(title)
            call = command(benchmark, given.store, quick=given.quick)
            began = time.monotonic()
            status = None if call is None else shown(call, report)
            told = {None: f"skipped: no {benchmark.needs} here", 0: "done"}.get(status, "FAILED")
            ended.append(f"{benchmark.name:20} {time.monotonic() - began:7.0f} s  {told}")
    print("\n".join(["", *ended, f"kept in {given.report}"]))
    sys.exit(any(line.endswith("FAILED") for line in ended))


if __name__ == "__main__":
    main()
