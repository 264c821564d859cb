"""What the demo learns over seeds, processors' vector instructions and numbers of threads.

`python tests/benchmarks/demo_seeds.py` runs the whole demo 16 times, one run after the other, each
in a store of its own, and prints a line per run as it ends; then mean, standard deviation and worst
of each metric, and by how many standard deviations the mean lies inside the bar of the end-to-end
tests. Libraries are held to fewer vector instructions than the processor has by their own
variables, which is as near as one machine comes to another. `--runs` does the first ones only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES: Mapping[str, Mapping[str, str]] = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
    },
    "none": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "DNNL_MAX_CPU_ISA": "SSE41",
    },
}
# Seed, capability, threads. Every seed is there natively; the other machines come in turn.
RUNS = (
    *((seed, "native", 1 + seed % 2) for seed in range(8)),
    *((seed, "avx2", 2 - seed % 2) for seed in range(5)),
    *((seed, "none", 1 + seed % 2) for seed in range(3)),
)
# Metric, condition, column, and the bar that each run must reach: at least, or at most below zero.
ASKED = {
    "CIDEr-D": ("cider_d", "real", "value", 5.0),
    "gap to neighbour, low": ("cider_d_gap", "nearest_neighbour", "low", 0.0),
    "answers": ("answer_accuracy", "real", "value", 0.90),
    "POPE": ("pope_accuracy", "real", "value", 0.90),
    "blind answers": ("answer_accuracy", "blind", "value", -0.45),
    "ends": ("eos_rate", "real", "value", 0.99),
}


def run(folder: Path, seed: int, capability: str, threads: int) -> dict[str, float]:
    """Run the demo and return its metrics, and `minutes` of the clock.

    Raises:
        SystemExit: It failed; a model that the gate refused is none of that.
    """
    environment = {
        **os.environ,
        **CAPABILITIES[capability],
        "PHIVISION_STORE": str(folder / "store"),
        "PHIVISION_WANDB": "disabled",
        "PREFECT_HOME": str(folder / "prefect"),
    }
    command = [sys.executable, "-m", "flows.cli"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "run", "--preset", "demo", "--set", f"seed={seed}", "--threads", str(threads)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    minutes = (time.perf_counter() - start) / 60
    if done.returncode not in (0, 3):
        sys.exit(done.stdout + done.stderr)
    query = (
        "SELECT metric, condition, value, low FROM metrics "
        "WHERE stage = 'finetune' AND split = 'test'"
    )
    rows = json.loads(
        subprocess.run(
            [*command, "sql", query, "--format", "json"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    found = {(row["metric"], row["condition"]): row for row in rows}
    asked = {name: found[at[0], at[1]][at[2]] for name, at in ASKED.items()}
    return {**asked, "minutes": minutes}


def line(words: str, values: Mapping[str, float]) -> str:
    """Return one row of the table."""
    cells = [
        f"{value:.1f}" if name == "minutes" else f"{value:.3f}" for name, value in values.items()
    ]
    return f"| {words} | {' | '.join(cells)} |"


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=len(RUNS), help="how many of the runs")
    given = parser.parse_args()
    names = (*ASKED, "minutes")
    print(f"| seed, instructions, threads | {' | '.join(names)} |\n|---|{'--:|' * len(names)}")
    results = []
    for seed, capability, threads in RUNS[: given.runs]:
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(Path(folder), seed, capability, threads))
        print(line(f"{seed}, {capability}, {threads}", results[-1]), flush=True)
    columns = {name: [result[name] for result in results] for name in names}
    means = {name: statistics.mean(values) for name, values in columns.items()}
    print(line("**mean**", means))
    if len(results) < 2:
        return
    spread = {name: statistics.stdev(values) for name, values in columns.items()}
    print(line("standard deviation", spread))
    worst = {n: (max if n in ("blind answers", "minutes") else min)(v) for n, v in columns.items()}
    print(line("worst", worst))
    for name, (*_, bar) in ASKED.items():
        inside = (means[name] - bar) if bar >= 0 else (-bar - means[name])
        apart = "no spread" if not spread[name] else f"{inside / spread[name]:.1f} deviations"
        print(f"{name}: the mean lies {inside:.3f} inside the bar {abs(bar)}, {apart}")


if __name__ == "__main__":
    main()
