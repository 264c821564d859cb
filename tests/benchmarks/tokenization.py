"""How fast captions and conversations become token ids, beside `datasets.map`.

Run it from the repository root: `python tests/benchmarks/tokenization.py`. Both sides take the same
texts in memory and leave token ids and loss masks in a file: ours as the stage `examples` makes
them, in one process; `datasets.map` in batches, in two processes (`helpers/tokenization_peer.py`).
A digest says that both have the same tokens. They take turns, each in a process of its own, so that
other load on the machine meets both. Goals: 100,000 examples a second, twice `datasets.map`.

A second line is ours with a tokenizer that is not cut at blanks, and so gives whole texts to the
`tokenizers` package, on two threads.

datasets comes from --python, from this environment (`pip install -e '.[bench]'`), or is installed
by uv into a folder that is removed afterwards.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.helpers.peer_environment import python_with
from tests.benchmarks.helpers.spread import ratio, spread

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("helpers") / "tokenization_peer.py"
THREADS = 2  # and processes of datasets.map
VOCABULARY = 50_000
GOAL_RATE, GOAL_RATIO = 100_000, 2.0


def write_texts(folder: Path, captions: int, talks: int) -> None:
    """Write a tokenizer of Phi-2's kind and size, captions and conversations."""
    from model.tiny_phi import train_tokenizer
    from tests.benchmarks.helpers.made_dataset import Texts

    texts = Texts(1)
    train_tokenizer([texts.sentence(7, 14) for _ in range(4 * VOCABULARY)], VOCABULARY, folder)
    spoken = [texts.conversation("", number)["conversations"] for number in range(talks)]
    pairs = [[turn["value"].removeprefix("<image>\n") for turn in turns] for turns in spoken]
    written = {"captions": [texts.sentence(7, 14) for _ in range(captions)], "talks": pairs}
    (folder / "texts.json").write_text(json.dumps(written))


def ours(folder: Path, *, whole: bool) -> dict[str, Any]:
    """Tokenize in this process as the stage does, and return what it cost."""
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow as pa

    from model import prompt_batches
    from model.prompt import PromptTemplate
    from model.prompt_batches import BatchTemplate, one_thread_per_tokenizer
    from pipeline.data.schemas import EXAMPLES
    from pipeline.interpreter import collecting_rarely
    from storage.tables import TableWriter, list_column
    from tests.benchmarks.helpers.tokenization_peer import AFTER, BEFORE, Clock, digest

    if whole:
        prompt_batches.splits_at_blanks = lambda _: False
    texts = json.loads((folder / "texts.json").read_text())
    template = PromptTemplate.load(folder, 0, BEFORE, AFTER)
    fields = [EXAMPLES.field(name) for name in ("input_ids", "supervised")]
    talks = [list(zip(said[::2], said[1::2], strict=True)) for said in texts["talks"]]
    path = folder / "ours.parquet"
    clock = Clock()
    with (
        one_thread_per_tokenizer(),
        collecting_rarely(),
        ThreadPoolExecutor(THREADS) as executor,
        TableWriter(path, pa.schema(fields)) as writer,
    ):
        batches = BatchTemplate(template, executor, THREADS)
        kinds = (  # as many at once as the stage
            (texts["captions"], 8192, batches.template.caption),
            (talks, 2048, batches.template.conversation),
        )
        for some, at_once, tokens_of in kinds:
            for start in range(0, len(some), at_once):
                part = some[start : start + at_once]

                def make(part: Any = part, tokens_of: Any = tokens_of) -> list[Any]:
                    return [tokens_of(each) for each in part]

                batches.prepare(make)
                made = make()
                columns = [
                    list_column([getattr(tokens, field.name) for tokens in made], field)
                    for field in fields
                ]
                writer.write(pa.table(columns, pa.schema(fields)))
    return {**clock.took(), "digest": digest(path), "examples": sum(map(len, texts.values()))}


def main() -> None:
    """Print both sides and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--talks", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--python", type=Path, help="a Python that has datasets")
    parser.add_argument("--no-datasets", action="store_true", help="measure phivision alone")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(ours(Path(given.one[1]), whole=given.one[0] == "whole")))
        return
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        folder = Path(name)
        write_texts(folder, given.captions, given.talks)
        sides = {
            "ours": [sys.executable, __file__, "--one", "words", name],
            "whole texts": [sys.executable, __file__, "--one", "whole", name],
        }
        python = None if given.no_datasets else given.python or python_with("datasets", folder)
        if python is not None:
            sides["datasets.map"] = [str(python), str(PEER), name, str(THREADS)]
        costs = [measure(sides) for _ in range(given.repeats)]
    report({side: [cost[side] for cost in costs] for side in sides})


def measure(sides: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Run each side once; all must have the same tokens."""
    costs = {}
    for side, command in sides.items():
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        costs[side] = json.loads(done.stdout.splitlines()[-1])
    if len({cost["digest"] for cost in costs.values()}) != 1:
        sys.exit(f"the sides have different tokens: {costs}")
    return costs


def report(costs: dict[str, list[dict[str, Any]]]) -> None:
    """Print rates by the clock, processor time of an example, and ratios to datasets.map."""
    for side, runs in costs.items():
        rates = [run["examples"] / run["seconds"] for run in runs]
        each = [run["processor"] / run["examples"] * 1e6 for run in runs]
        print(f"{side:13} {spread(rates, 0)} examples/s, {spread(each, 1)} µs of processor each")
    print(f"goal          {GOAL_RATE} examples/s")
    if "datasets.map" not in costs:
        print("without datasets: give a Python that has it with --python, or put uv on the PATH")
        return
    for side in ("ours", "whole texts"):
        times = {
            kind: ratio(
                [run[kind] for run in costs["datasets.map"]], [run[kind] for run in costs[side]]
            )
            for kind in ("seconds", "processor")
        }
        print(
            f"{side}: {times['seconds']} times datasets.map by the clock (goal {GOAL_RATIO}), "
            f"{times['processor']} in processor time"
        )


if __name__ == "__main__":
    main()
