"""How long a run takes in which nothing changed, beside `dvc repro` on a pipeline of that shape.

Run it from the repository root: `python tests/benchmarks/cached_run.py`. The tiny demo is made
once; a DVC project gets the same nine stages, the same dependencies between them, the same files
as outputs and the same code files as dependencies. Then the commands take turns, from process
start to exit, so that other load on the machine meets all of them. Goals: `phivision plan` at
most 1 s, `phivision run` at most 2 times `dvc repro`.

DVC comes from --dvc, from this environment (`pip install -e '.[bench]'`), or is installed by uv
into a folder that is removed afterwards.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.engine.code_identity import code_digests
from pipeline.engine.dag import DAG
from pipeline.recipe.presets import preset
from storage.filesystem import LocalFiles
from storage.store.artifacts import ArtifactStore
from tests.benchmarks.helpers.peer_environment import python_with
from tests.benchmarks.helpers.spread import ratio, spread
from tests.conftest import TINY, assignments

ROOT = Path(__file__).resolve().parents[2]


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of all commands: byte code is kept, as on a user's machine."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}
    if variables.pop("PYTHONDONTWRITEBYTECODE", ""):
        variables["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    return variables


def call(
    command: Sequence[str], cwd: Path, variables: Mapping[str, str], says: str = ""
) -> tuple[float, str]:
    """Run a command that must succeed and print `says`; return its seconds and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode or says not in done.stdout:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - start, done.stdout


def find_dvc(folder: Path) -> Path | None:
    """Return the DVC of this environment, else one newly installed, or None without uv."""
    python = python_with("dvc", folder)
    return None if python is None else python.with_name("dvc")


def same_shape(store: ArtifactStore, folder: Path) -> int:
    """Write a dvc.yaml of the same stages, code and files; return how many files there are."""
    assert isinstance(store.files, LocalFiles)
    stages, files = {}, 0
    for stage in DAG:
        manifest = store.manifests(stage.name)[0]
        files += len(manifest.files)
        also = stage.code_with(preset("demo"))
        code = list(code_digests(stage.module, stage.name, also=also))
        for path in code:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / path)
        stages[stage.name] = {
            "cmd": f"cp -r {store.files.path(manifest.folder)} out/{stage.name}",
            "deps": [*code, *(f"out/{name}" for name in manifest.payload["inputs"])],
            "outs": [f"out/{stage.name}"],
        }
    (folder / "out").mkdir()
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    return files


def main() -> None:
    """Print the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dvc", type=Path, help="the dvc executable")
    parser.add_argument("--no-dvc", action="store_true", help="measure phivision alone")
    parser.add_argument("--store", type=Path, help="a store of the tiny demo; made anew without")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        folder = Path(name)
        variables = environment(folder)
        phivision = [sys.executable, "-m", "flows.cli"]
        where = ["--store", str(options.store or folder / "store"), *assignments(TINY)]
        call([*phivision, "run", *where], ROOT, variables)  # makes what is missing
        commands = {
            "phivision plan": ([*phivision, "plan", *where], ROOT, "fresh"),
            "phivision run": ([*phivision, "run", *where], ROOT, "nothing to do"),
        }
        dvc = None if options.no_dvc else options.dvc or find_dvc(folder)
        if dvc is not None:
            project = prepare_dvc(dvc, ArtifactStore(where[1], folder / "cache"), folder, variables)
            commands["dvc repro"] = ([str(dvc), "repro", "-q"], project, "")
        took: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(options.repeats + 1):
            for name, (command, cwd, says) in commands.items():
                seconds, _ = call(command, cwd, variables, says)
                took[name] += [seconds] if turn else []  # the first turn fills the caches
        report(took)


def prepare_dvc(
    dvc: Path, store: ArtifactStore, folder: Path, variables: Mapping[str, str]
) -> Path:
    """Return a DVC project of the same shape in which nothing is left to do."""
    project = folder / "project"
    project.mkdir()
    files = same_shape(store, project)
    for setting in (["init", "-q", "--no-scm"], ["config", "core.check_update", "false"]):
        call([str(dvc), *setting], project, variables)
    _, version = call([str(dvc), "--version"], project, variables)
    seconds, _ = call([str(dvc), "repro", "-q"], project, variables)
    print(f"DVC {version.strip()}: {len(DAG)} stages with {files} files made in {seconds:.1f} s")
    return project


def report(took: Mapping[str, Sequence[float]]) -> None:
    """Print median, best and worst of each command, and what they mean."""
    for name, seconds in took.items():
        print(f"{name:<15} {spread(seconds)} s")
    if "dvc repro" in took:
        times = ratio(took["phivision run"], took["dvc repro"])
        print(f"phivision run takes {times} times as long as dvc repro")
    else:
        print("without DVC: give its path with --dvc, or put uv on the PATH")


if __name__ == "__main__":
    main()
