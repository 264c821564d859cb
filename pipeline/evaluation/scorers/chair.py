"""Which objects a caption mentions, and which of them are not in the image (CHAIR).

Source: Rohrbach et al. 2018, *Object Hallucination in Image Captioning*. An object is there if
people marked it or if one of the image's reference captions names it. Longer names win, so a
"hot dog" is not a dog; the baby of an animal is that animal, not a person.
"""

from collections.abc import Collection, Sequence

from pipeline.evaluation.scorers.ptb_tokenizer import tokenize
from pipeline.evaluation.scorers.synonyms import ANIMALS, COCO_SYNONYMS, NO_OBJECT, PLURALS

_YOUNG = ("baby", "adult", "young")
_Words = tuple[str, ...]


class ObjectNames:
    """Finds categories in captions, by name, synonym and plural.

    A category of COCO has the synonyms of `COCO_SYNONYMS`; any other only its own name.
    """

    def __init__(self, categories: Collection[str]) -> None:
        self._names: dict[_Words, str | None] = {
            form: None for name in NO_OBJECT for form in _forms(name)
        }
        for category in sorted(categories):
            for name in (category, *COCO_SYNONYMS.get(category, ())):
                for form in _forms(name):
                    self._names[form] = category
                    if category in ANIMALS:
                        self._names |= {(young, *form): category for young in _YOUNG}
        self._longest = max(len(words) for words in self._names)

    def mentioned(self, caption: str) -> list[str]:
        """Return the category of every mention, in order; one named twice counts twice."""
        return [category for category, _, _ in self.spans(tokenize(caption))]

    def by_word(self, words: Sequence[str]) -> list[str | None]:
        """Return for each word of a text, as it is written, the category that it names or None."""
        tokens = [(token, number) for number, word in enumerate(words) for token in tokenize(word)]
        categories: list[str | None] = [None] * len(words)
        for category, start, stop in self.spans([token for token, _ in tokens]):
            for _, number in tokens[start:stop]:
                categories[number] = category
        return categories

    def spans(self, words: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return every mention among tokens: category, first token, and the one after the last."""
        mentions: list[tuple[str, int, int]] = []
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                words_here = tuple(words[at : at + length])
                if words_here in self._names:
                    category = self._names[words_here]
                    mentions += [] if category is None else [(category, at, at + length)]
                    at += length
                    break
            else:
                at += 1
        return mentions

    def hallucinated(
        self, caption: str, marked: Collection[str], references: Sequence[str]
    ) -> tuple[list[str], int]:
        """Return the mentions of objects that are not in the image, and the number of mentions.

        Args:
            caption: The caption to be judged.
            marked: Categories that people marked in the image.
            references: Captions that people wrote about it.
        """
        mentions = self.mentioned(caption)
        if not mentions:
            return [], 0
        there = {*marked, *(name for text in references for name in self.mentioned(text))}
        return [name for name in mentions if name not in there], len(mentions)


def _forms(name: str) -> list[_Words]:
    """A name as words, in the singular and in the plural."""
    *first, last = name.split()
    return [(*first, last), (*first, PLURALS.get(last) or _plural(last))]


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return f"{word[:-1]}ies"
    if word.endswith("man"):
        return f"{word[:-3]}men"
    return f"{word}s"
