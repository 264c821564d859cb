"""The other stores of `feature_feeding.py`, run by the Python of an environment that has them.

`python feeding_peers.py raw.npy FOLDER` writes the rows of a numpy file once with Hugging Face
datasets, Lance and webdataset, each as plain bytes in one column, which is the quickest way for
each. Then it reads one line per epoch, `NAME SEED BATCH`, and answers with MB/s. The order is a
true global shuffle, but for webdataset, which has none: it shuffles 1,000 rows at a time.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import lance
import numpy as np
import pyarrow as pa
import webdataset

Reader = Callable[[np.ndarray, int], Iterator[np.ndarray]]


def column(rows: np.ndarray) -> pa.Table:
    """Return rows as one column of bytes."""
    return pa.table({"patches": pa.array([row.tobytes() for row in rows], pa.binary())})


def values(binary: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a column of bytes as float16 [row, patch, width]."""
    return np.stack([np.frombuffer(b.as_buffer(), np.float16).reshape(shape) for b in binary])


def write_tar(raw: np.ndarray, path: Path) -> None:
    """Write rows as one webdataset tar."""
    with webdataset.TarWriter(str(path)) as tar:
        for number, row in enumerate(raw):
            tar.write({"__key__": f"{number:08d}", "bin": row.tobytes()})


def readers(raw: np.ndarray, folder: Path) -> dict[str, Reader]:
    """Write the rows three times and return how an epoch is read from each."""
    shape, table = raw.shape[1:], column(raw)
    datasets.Dataset(table).save_to_disk(folder / "hf")
    hugging = datasets.load_from_disk(folder / "hf").with_format("arrow")
    lance.write_dataset(table, str(folder / "lance"))
    columns = lance.dataset(str(folder / "lance"))
    write_tar(raw, folder / "rows.tar")

    def parts(order: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        yield from (order[start : start + batch] for start in range(0, len(order), batch))

    def by_hugging(order: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        for rows in parts(order, batch):
            yield values(hugging[rows]["patches"], shape)

    def by_lance(order: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        for rows in parts(order, batch):
            yield values(columns.take(rows)["patches"], shape)

    def by_tar(order: np.ndarray, batch: int) -> Iterator[np.ndarray]:
        del order
        stream = webdataset.WebDataset(str(folder / "rows.tar"), shardshuffle=False).shuffle(1000)
        held = []
        for sample in stream:
            held.append(np.frombuffer(sample["bin"], np.float16).reshape(shape))
            if len(held) == batch:
                yield np.stack(held)
                held = []
        if held:
            yield np.stack(held)

    return {"datasets": by_hugging, "lance": by_lance, "webdataset": by_tar}


def main() -> None:
    """Answer one line per epoch."""
    raw = np.load(sys.argv[1], mmap_mode="r")
    found = readers(raw, Path(sys.argv[2]))
    print("ready", *found, flush=True)
    for line in sys.stdin:
        name, seed, batch = line.split()
        order = np.random.default_rng(int(seed)).permutation(len(raw))
        began, total = time.perf_counter(), 0
        for rows in found[name](order, int(batch)):
            total += rows.nbytes
        assert total == raw.nbytes, name
        print("speed", total / 1e6 / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
