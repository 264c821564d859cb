"""The other side of `tokenization.py`: `datasets.map`, run by a Python that has datasets.

`python tokenization_peer.py FOLDER PROCESSES` reads `tokenizer.json` and `texts.json` of a folder,
tokenizes with `datasets.map` in batches of 1,000, all texts of a batch in one call of the
tokenizer, and prints what it cost. The clock starts with the texts in a dataset and stops when ids
and masks are on disk, which is where `datasets.map` leaves them.
"""

import hashlib
import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

BEFORE, AFTER, EOS = "Instruct: ", "\nOutput:", 0
BATCH = 1000  # the default of datasets.map


class Clock:
    """Seconds and processor seconds, those of ended child processes included."""

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), sum(os.times()[:4])

    def took(self) -> dict[str, float]:
        """Return what has gone by."""
        seconds = time.perf_counter() - self._began
        return {"seconds": seconds, "processor": sum(os.times()[:4]) - self._used}


def digest(*paths: Path) -> str:
    """Return a digest of the ids and masks in Parquet files, one example after another."""
    import pyarrow.parquet as pq

    made = hashlib.sha256()
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(columns=["input_ids", "supervised"]):
            for row in batch.to_pylist():
                made.update(json.dumps([row["input_ids"], row["supervised"]]).encode())
    return made.hexdigest()


def tokenized(batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
    """Return ids and masks of a batch; an example is a list of texts, a caption a list of one."""
    texts: list[str] = []
    for said in batch["said"]:
        if len(said) == 1:
            texts += said
        for question, answer in zip(said[::2], said[1::2], strict=False):
            texts += f"{BEFORE}{question}{AFTER}", f" {answer}"
    encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    ids, masks = [], []
    for said in batch["said"]:
        row: list[int] = []
        mask: list[bool] = []
        for number, encoding in enumerate(islice(encoded, len(said))):
            is_answer = number % 2 == 1 or len(said) == 1
            part = [*encoding.ids, EOS] if is_answer else encoding.ids
            row += part
            mask += [is_answer] * len(part)
        ids.append(row)
        masks.append(mask)
    return {"input_ids": ids, "supervised": masks}


def main() -> None:
    """Print the cost as JSON."""
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its own threads would take the other's core
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    texts = json.loads((folder / "texts.json").read_text())
    said = [[caption] for caption in texts["captions"]] + texts["talks"]
    (folder / "peer-cache").mkdir(exist_ok=True)
    source = datasets.Dataset.from_dict({"said": said})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    clock = Clock()
    made = source.map(
        tokenized,
        batched=True,
        batch_size=BATCH,
        num_proc=processes,
        remove_columns=["said"],
        fn_kwargs={"tokenizer": tokenizer},
        load_from_cache_file=False,
        cache_file_name=str(folder / "peer-cache" / "made.arrow"),
    )
    took = clock.took()
    made.to_parquet(folder / "peer.parquet")
    print(json.dumps({**took, "digest": digest(folder / "peer.parquet"), "examples": len(made)}))


if __name__ == "__main__":
    main()
