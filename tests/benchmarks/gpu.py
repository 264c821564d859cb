"""What is measured on one GPU, in at most 25 minutes: training, extraction, evaluation, serving.

Run it from the repository root of a machine with a GPU, before anything else is done there:
`python tests/benchmarks/gpu.py`. Each part is a benchmark of its own in a process of its own, has a
limit of time, and stops no other part. What they print is kept in `.phivision-gpu.txt`, dated, for
docs/performance.md. `--tiny` runs every part on the CPU at a small size, to see that it works.

Goals, on an H100 or H200: 45 % MFU in pretraining and 50 % with LoRA, extraction at 92 % of the
bare forward pass, evaluation in at most 1.5 times its limit, and 16 clients served at least four
times as fast as one, each against the other side in the same run.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


@dataclass(frozen=True)
class Part:
    """A benchmark, and how it is called.

    Attributes:
        name: The file without its suffix.
        arguments: Those for a GPU.
        tiny: Those that show on a CPU that it works; None where a CPU cannot do it.
        minutes: After which it is stopped.
    """

    name: str
    arguments: str
    tiny: str | None
    minutes: float


PARTS = (
    Part("gpu_training", "", "--tiny --steps 2 --warmup 1", 6),
    Part("gpu_training", "--attention flex_attention", None, 5),
    Part(
        "feature_extraction",
        "--device cuda --images 8192 --batch 256 --threads 16",
        "--images 16 --batch 8 --repeats 1",
        5,
    ),
    Part(
        "evaluation_speed",
        "--device cuda --dtype bfloat16 --captions 256 --questions 256 --batch 128",
        "--captions 8 --questions 8 --batch 4 --longest 24 --layers 2 --width 192 "
        "--vocabulary 512 --rounds 2",
        5,
    ),
    Part("serving", "--long --count 128", "--count 16 --rounds 1", 4),
)


def run(part: Part, arguments: str) -> tuple[str, str]:
    """Return what a part printed, and how it ended."""
    call = [sys.executable, str(FOLDER / f"{part.name}.py"), *arguments.split()]
    began = time.monotonic()
    try:
        done = subprocess.run(
            call,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=part.minutes * 60,
        )
        printed, ended = done.stdout, "FAILED" if done.returncode else "done"
    except subprocess.TimeoutExpired as late:
        # What it has printed so far is worth keeping; it is bytes, whatever was asked for.
        printed = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else ""
        ended = f"stopped after {part.minutes:g} minutes"
    return printed, f"{part.name:20} {time.monotonic() - began:7.0f} s  {ended}"


def main() -> None:
    """Run the parts, show and keep what they print, and exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--report", type=Path, default=ROOT / ".phivision-gpu.txt")
    given = parser.parse_args()
    import torch

    if not given.tiny and not torch.cuda.is_available():
        # Not an error, so that `make bench` goes on.
        print("there is no CUDA device here; --tiny shows on the CPU that the benchmark works")
        return
    name = "CPU" if given.tiny else torch.cuda.get_device_name()
    report = [f"{time.strftime('%Y-%m-%d')}, {name}, torch {torch.__version__}"]
    ended = []
    for part in PARTS:
        arguments = part.tiny if given.tiny else part.arguments
        if arguments is None:
            continue
        printed, end = run(part, arguments)
        ended.append(end)
        report.append(f"\n== {part.name} {arguments}\n\n{printed}")
        print(report[-1], end, flush=True)
        given.report.write_text("\n".join([*report, *ended]))
    print("\n".join(["", *ended, f"kept in {given.report}"]))
    sys.exit(any(end.endswith("FAILED") for end in ended))


if __name__ == "__main__":
    main()
