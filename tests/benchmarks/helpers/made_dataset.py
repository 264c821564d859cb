"""A dataset of any size in COCO's and LLaVA's formats: small JPEGs, captions, conversations.

A few bodies of JPEGs are drawn, and each file gets random bytes as a comment, so that all
contents differ and do not compress, and hundreds of thousands are made in a minute. Words are drawn
as in a language: a few are frequent, most are rare, because tokenizers are quick on words that they
have just seen.
"""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
CAPTIONS, BODIES, NOISE = 5, 16, 1200
TEST_SHARE = 0.04
_NOUNS = """
man woman child dog cat horse bus train truck boat bench kite umbrella pizza cake laptop clock
giraffe zebra elephant bear bird chair table bed sofa sink toilet oven book vase phone car bike
street field beach kitchen room building tree hill river station sign light ball racket board
"""
_OTHERS = """
small large red white black blue green old young tall wooden open empty crowded bright striped
standing sitting riding holding eating walking playing looking waiting flying next behind under
near with on in at by over through across beside and the a of his her its their some two three
"""
_SYLLABLES = "ba con der el fan gra hol im jo ker lan mon nel or per ques ran sta tor un vil wes"
_QUESTIONS = (
    "What is the {0} doing near the {1}?",
    "How many {0}s are there?",
    "What colour is the {0} beside the {1}?",
    "Why might the {0} be close to the {1}?",
    "Describe the {0} and the {1} in detail.",
)


class Texts:
    """Draws sentences from a vocabulary of twenty thousand words.

    Args:
        seed: Of all that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        parts, self.nouns = _SYLLABLES.split(), _NOUNS.split()
        rare = ["".join(self.random.choices(parts, k=at % 3 + 2)) for at in range(20_000)]
        self.words = [*_OTHERS.split(), *self.nouns, *rare]
        # Zipf's law, a little steeper, as in COCO's captions, where most words are among a hundred.
        self._weights = [*accumulate(1 / (rank + 3) ** 1.25 for rank in range(len(self.words)))]

    def sentence(self, least: int, most: int) -> str:
        """Return a sentence of so many words."""
        count = self.random.randint(least, most)
        words = self.random.choices(self.words, cum_weights=self._weights, k=count)
        return f"A {' '.join(words)}."

    def conversation(self, image: str, number: int) -> dict[str, Any]:
        """Return a record in LLaVA's format, of two to four questions and answers."""
        turns: list[dict[str, str]] = []
        for turn in range(self.random.randint(2, 4)):
            asked = self.random.choice(_QUESTIONS).format(*self.random.choices(self.nouns, k=2))
            answer = " ".join(self.sentence(6, 20) for _ in range(self.random.randint(1, 4)))
            turns.append({"from": "human", "value": asked if turn else f"<image>\n{asked}"})
            turns.append({"from": "gpt", "value": answer})
        return {"id": f"{number:012d}", "image": image, "conversations": turns}


def write_dataset(
    root: Path, images: int, seed: int = 0, bodies: Sequence[bytes] | None = None
) -> None:
    """Write `annotations/`, `train2017.zip`, `val2017.zip` and `conversations.json`.

    Args:
        root: A new folder.
        images: Images in all, `TEST_SHARE` of them in `val2017`.
        seed: Of texts and pixels.
        bodies: JPEGs of which all images are copies with comments; by default small ones.
    """
    drawn = [*_bodies(seed)] if bodies is None else bodies
    texts, tests = Texts(seed), max(int(images * TEST_SHARE), 1)
    (root / "annotations").mkdir(parents=True)
    first_test = images - tests + 1
    parts = {"train2017": range(1, first_test), "val2017": range(first_test, images + 1)}
    for split, ids in parts.items():
        _write_images(root / f"{split}.zip", split, ids, seed, drawn)
        with (root / f"annotations/captions_{split}.json").open("w") as stream:
            stream.write('{"info": {"year": 2017}, "images": [')
            _write_list(stream, map(_image, ids))
            stream.write('], "licenses": [], "annotations": [')
            _write_list(stream, _captions(texts, ids))
            stream.write("]}")
    with (root / "conversations.json").open("w") as stream:
        stream.write("[")
        names = ((_name(number), number) for number in range(1, images + 1))
        _write_list(stream, (texts.conversation(*each) for each in names))
        stream.write("]")


def _write_list(stream: Any, records: Iterable[Any]) -> None:
    for number, record in enumerate(records):
        stream.write(f"{', ' if number else ''}{json.dumps(record)}")


def _captions(texts: Texts, ids: range) -> Iterator[dict[str, Any]]:
    for image in ids:
        for number in range(CAPTIONS):
            key, caption = CAPTIONS * image + number, texts.sentence(7, 14)
            yield {"image_id": image, "id": key, "caption": caption}


def _image(number: int) -> dict[str, Any]:
    """Return an image's record with the fields that COCO has."""
    return {
        "license": 4,
        "file_name": _name(number),
        "coco_url": f"http://images.cocodataset.org/train2017/{_name(number)}",
        "height": HEIGHT,
        "width": WIDTH,
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": f"http://farm7.staticflickr.com/6116/{number}_2c9b4a4b6d_z.jpg",
        "id": number,
    }


def _name(number: int) -> str:
    return f"{number:012d}.jpg"


def _write_images(path: Path, split: str, ids: range, seed: int, bodies: Sequence[bytes]) -> None:
    """Write a zip of JPEGs; a comment right after its first marker makes each file differ."""
    noise = Random(f"{seed} {split}")
    with zipfile.ZipFile(path, "w") as archive:
        for number in ids:
            body, note = bodies[number % len(bodies)], noise.randbytes(NOISE)
            comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
            archive.writestr(f"{split}/{_name(number)}", body[:2] + comment + body[2:])


def _bodies(seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for _ in range(BODIES):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
        stream = io.BytesIO()
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        yield stream.getvalue()
