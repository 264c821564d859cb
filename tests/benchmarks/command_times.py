"""How long each command takes on a finished store, beside a bound, for one checkout or two.

Run it from the repository root: `python tests/benchmarks/command_times.py --store STORE`. Without
a store, the tiny demo is made first. Each checkout gets a copy of the store, whose artifacts are
adopted (`phivision accept --all`) where its code differs. Then the commands take turns, from
process start to exit, so that other load on the machine meets all of them; files are in the cache
of the operating system, and byte code is kept. `--against CHECKOUT` names the root of another
checkout, such as a git worktree of an earlier commit, which uses the same environment.

Seconds of the clock say what a person waits for; processor seconds say it on a busy machine, too.
The bounds are for the clock on a quiet one. Prints a table in Markdown, with "over" where a
command needs more processor seconds than its bound. Commands that serve until they are stopped are
not measured.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.data.datasets.shapes.drawing import draw
from pipeline.data.datasets.shapes.scenes import make_scene
from tests.conftest import TINY, assignments

ROOT = Path(__file__).resolve().parents[2]


class Command(NamedTuple):
    """A command to measure.

    Attributes:
        arguments: What follows `phivision`; {photo} is an image that the store does not hold, {out}
            a folder that is empty before each turn.
        bound: Seconds.
        of_recipe: Whether it takes the store's recipe.
    """

    arguments: str
    bound: float
    of_recipe: bool = False


COMMANDS = (
    Command("run", 0.4, of_recipe=True),
    Command("ask {photo} What+is+red?", 2.5),
    Command("caption {photo}", 2.5),
    Command("similar {photo}", 2.5),
    Command("ask --why {photo} What+is+red?", 6.0),
    Command("--version", 0.4),
    Command("--help", 0.5),
    Command("plan", 1.0, of_recipe=True),
    Command("plan --preset coco --hardware 80GB", 1.0),
    Command("recipe", 1.0),
    Command("recipe --diff demo coco", 1.0),
    Command("runs", 1.0),
    Command("diff latest latest", 1.0),
    Command("scores", 1.0),
    Command("show", 1.5),
    Command("sql SELECT+count(*)+FROM+examples", 1.0),
    Command("sql SUMMARIZE+predictions", 1.0),
    Command("verify", 2.5),
    Command("gc --dry-run", 1.0),
    Command("rollback --list", 1.0),
    Command("tag good", 1.0),
    Command("catalog {out}/catalog.duckdb", 1.0),
    Command("report --output {out}/report.html", 5.0),
    Command("browse --output {out}/browse.html", 7.0),
    Command("export {out}/bundle", 1.5),
)


class Checkout(NamedTuple):
    """Code to measure, and the store that it uses."""

    root: Path
    store: Path
    variables: Mapping[str, str]

    def call(self, arguments: Sequence[str]) -> tuple[float, float, str]:
        """Run a command that must succeed; return seconds of clock and processor, and its text."""
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.root,
            env={
                **self.variables,
                "PYTHONPATH": str(self.root),
                "PHIVISION_STORE": str(self.store),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"phivision {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return clock, used, done.stdout


def prepare(root: Path, folder: Path, store: Path, recipe: Sequence[str]) -> Checkout:
    """Return a checkout with a copy of a store in which nothing is left to do."""
    shutil.copytree(store, folder / "store")
    variables = {**os.environ, "PHIVISION_WANDB": "disabled", "COLUMNS": "80"}
    if variables.pop("PYTHONDONTWRITEBYTECODE", ""):
        variables["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    checkout = Checkout(root, folder / "store", variables)
    checkout.call(["accept", "--all", *recipe])
    if "nothing to do" not in checkout.call(["run", *recipe])[2]:
        sys.exit(f"{store} has another recipe than this benchmark: make one with `phivision run`")
    return checkout


def measure(
    commands: Sequence[Command],
    checkouts: Sequence[Checkout],
    repeats: int,
    recipe: Sequence[str],
    folder: Path,
) -> dict[Command, list[tuple[float, float]]]:
    """Return, for each command, the median seconds of clock and processor of each checkout."""
    photo, out = folder / "photo.jpg", folder / "out"
    draw(make_scene(seed=7, index=1)).save(photo)
    medians = {}
    for command in commands:
        words = command.arguments.format(photo=photo, out=out).split()
        arguments = [word.replace("+", " ") for word in words]
        arguments += recipe if command.of_recipe else ()
        took: list[list[tuple[float, float]]] = [[] for _ in checkouts]
        for turn in range(repeats + 1):
            for place, checkout in enumerate(checkouts):
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                clock, used, _ = checkout.call(arguments)
                took[place] += [(clock, used)] if turn else []  # the first turn fills the caches
        medians[command] = [
            (statistics.median(c for c, _ in each), statistics.median(u for _, u in each))
            for each in took
        ]
        seconds = ", ".join(f"{clock:.2f} s" for clock, _ in medians[command])
        print(f"{command.arguments}: {seconds}", file=sys.stderr, flush=True)
    return medians


def print_table(medians: Mapping[Command, Sequence[tuple[float, float]]]) -> None:
    """Print the medians in Markdown."""
    both = any(len(each) > 1 for each in medians.values())
    titles = ["command", "bound", "clock", "processor"]
    titles += ["clock before", "processor before"] if both else []
    print(f"| {' | '.join(titles)} | |")
    print(f"|---|{'--:|' * (len(titles) - 1)}---|")
    for command, found in medians.items():
        text = command.arguments.replace("+", " ").replace("{photo}", "photo.jpg")
        cells = [f"`{text.replace('{out}/', '')}`", f"{command.bound:.1f}"]
        cells += [f"{seconds:.2f}" for each in found for seconds in each]
        over = "over" if found[0][1] > command.bound else ""
        print(f"| {' | '.join(cells)} | {over} |")


def main() -> None:
    """Measure all commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--store", type=Path, help="a store of the demo; the tiny one without")
    parser.add_argument("--against", type=Path, help="the root of another checkout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[], help="first words of what to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        folder = Path(name)
        store, recipe = options.store, [] if options.store else assignments(TINY)
        if store is None:
            store = folder / "made"
            Checkout(ROOT, store, {**os.environ, "PHIVISION_WANDB": "disabled"}).call(
                ["run", *recipe, "--publish-anyway"]
            )
        roots = [ROOT, *([options.against.resolve()] if options.against else [])]
        checkouts = []
        for number, root in enumerate(roots):
            (folder / str(number)).mkdir()
            checkouts.append(prepare(root, folder / str(number), store, recipe))
        only = options.only
        chosen = [each for each in COMMANDS if not only or each.arguments.split()[0] in only]
        medians = measure(chosen, checkouts, options.repeats, recipe, folder)
        print_table(medians)


if __name__ == "__main__":
    main()
