"""Questions about presence, "is there a …?", made from the objects that people marked.

Source: Li et al. 2023, *Evaluating Object Hallucination in Large Vision-Language Models* (POPE).
About each image as many present objects are asked for as absent ones. The absent ones come from
three sets: `random`, `popular` (the most frequent objects of the dataset) and `adversarial` (those
that most often occur together with a present one).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SETS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class PresenceQuestion:
    """One question about one image.

    Attributes:
        image_id: The image.
        category: What is asked for.
        present: Whether people marked it in the image.
        sets: Which of the three sets ask it; all of them where it is present.
    """

    image_id: int
    category: str
    present: bool
    sets: tuple[str, ...]

    def text(self, template: str) -> str:
        """Return the question in words; `{object}` stands for the category with its article."""
        article = "an" if self.category[:1] in "aeiou" else "a"
        return template.format(object=f"{article} {self.category}")


class PresenceAsker:
    """Chooses questions by the frequency and co-occurrence of objects in a dataset.

    Args:
        objects: Marked categories of every image, in the order in which they were marked.
        seed: Seed of the random set.
    """

    def __init__(self, objects: Mapping[int, Sequence[str]], seed: int) -> None:
        self._seed = seed
        self._objects = {image: list(dict.fromkeys(names)) for image, names in objects.items()}
        seen = Counter(name for names in self._objects.values() for name in names)
        self._popular = _ranked(seen)
        beside: dict[str, Counter[str]] = {name: Counter() for name in seen}
        for names in self._objects.values():
            for name in names:
                beside[name].update(other for other in names if other != name)
        self._beside = {name: _ranked(counts) for name, counts in beside.items()}

    def ask(self, image_id: int, most: int) -> list[PresenceQuestion]:
        """Return the questions about an image, none where it has no marked object."""
        there = self._objects.get(image_id, [])
        absent = [name for name in self._popular if name not in there]
        there = there[: min(most, len(absent))]
        random = np.random.default_rng([self._seed, 13, image_id])
        shuffled = [absent[place] for place in random.permutation(len(absent))]
        chosen = {
            "random": shuffled[: len(there)],
            "popular": absent[: len(there)],
            "adversarial": self._neighbours(there, absent, shuffled),
        }
        asked = [PresenceQuestion(image_id, name, True, SETS) for name in there]
        for name in dict.fromkeys(name for names in chosen.values() for name in names):
            sets = tuple(each for each in SETS if name in chosen[each])
            asked.append(PresenceQuestion(image_id, name, False, sets))
        return asked

    def _neighbours(
        self, there: Sequence[str], absent: Sequence[str], spare: Sequence[str]
    ) -> list[str]:
        """For each present object, the absent one most often seen with it and not asked yet."""
        chosen: list[str] = []
        for name in there:
            candidates = [other for other in self._beside[name] if other in absent] + list(spare)
            chosen.append(next(other for other in candidates if other not in chosen))
        return chosen


def _ranked(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def objects_by_image(rows: Iterable[Mapping[str, object]]) -> dict[int, list[str]]:
    """Return the categories of every image from rows of the `objects` table, in its order."""
    by_image: dict[int, list[str]] = {}
    for row in rows:
        by_image.setdefault(int(str(row["image_id"])), []).append(str(row["category"]))
    return by_image
