"""A text that is tokenized word by word has the tokens that it has as a whole."""

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from model import byte_level, word_tokenizer
from model.word_tokenizer import WordTokenizer, splits_at_blanks

EOS = "<|endoftext|>"
TEXTS = [
    "a red circle, and it's here",
    "Two  blue squares: 12 34",
    "what\n\nis   it? é\u0301 \u00a0x",
]
# Blanks of many kinds, marks that join what stands before them, and words that are frequent.
BLANKS = (" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\x85", "\x1c", "\u200b", "\r\n")
WORDS = ("'s", "'", "12", "3", ".", "...", "?!", "red", "Two", "字", "🟥", EOS, "ab c", "e", "é")
pieces = st.sampled_from([*BLANKS, *WORDS, "\u0301"])
texts = st.lists(pieces, max_size=12).map("".join) | st.text(max_size=20)


def gpt2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train(tokenizer)


def train(tokenizer: Tokenizer) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def smollm() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
    )
    return tokenizer


def composed() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def codegen() -> Tokenizer:
    """Return one with added tokens of several blanks, as that of Phi-2."""
    tokenizer = gpt2()
    runs = [AddedToken(blank * count) for blank in " \t" for count in range(9, 1, -1)]
    tokenizer.add_tokens(runs)
    return tokenizer


def split_by(name: str) -> Callable[[], Tokenizer]:
    """Return what makes one with the pattern of Qwen2 or Llama 3."""

    def make() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
        tokenizer.normalizer = normalizers.NFC()
        pattern = next(text for text, known in byte_level._SPLITS.items() if known == name)
        split = pre_tokenizers.Split(Regex(f"{byte_level._CONTRACTIONS}|{pattern}"), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
        return train(tokenizer)

    return make


BY_WORD = {make.__name__: make() for make in (gpt2, smollm, composed, codegen)} | {
    name: split_by(name)() for name in ("qwen2", "llama-bpe")
}


@pytest.mark.parametrize("name", BY_WORD)
@settings(max_examples=150, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4))
@example(["", " ", "  ", " a", "a ", "a  b", "a \n b", "a\n b", "a \nb", " \u0301"])
@example(["red", "red red red", " red", "red\x85 red", "it 's", "it's 12 3 4567"])
def test_tokens_are_those_of_the_whole_text(name: str, some: list[str]) -> None:
    tokenizer = BY_WORD[name]
    assert splits_at_blanks(tokenizer)
    words = WordTokenizer(tokenizer)
    for text in [*some, *some]:  # the second time from memory
        ids = words.encode(text, add_special_tokens=False).ids
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_a_word_of_usual_length_is_given_to_the_tokenizer_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Counting:
        def encode(self, text: str, *, add_special_tokens: bool) -> object:
            asked.append(text)
            return BY_WORD["gpt2"].encode(text, add_special_tokens=add_special_tokens)

    words = WordTokenizer(Counting())  # ty: ignore[invalid-argument-type]
    for text in ("a red box", "a red red box", " red box", "red  box"):
        words.encode(text, add_special_tokens=False)
    assert asked == ["a", " red", " box", "red", "red  box"]

    asked.clear()
    long = "一只棕色的狗在草地上跑" * 9
    for text in (f"a {long} box", f"a {long} box"):
        words.encode(text, add_special_tokens=False)
    assert asked == [f" {long}"] * 2

    monkeypatch.setattr(word_tokenizer, "_MOST", 2)  # then memory is bounded, and ids the same
    for text in ("one two three four", "one two three four"):
        ids = words.encode(text, add_special_tokens=False).ids
        assert ids == BY_WORD["gpt2"].encode(text, add_special_tokens=False).ids


def prefixed() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def split_otherwise() -> Tokenizer:
    tokenizer = gpt2()
    pattern = pre_tokenizers.Split(Regex(r"\p{L}+ \p{L}+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pattern, level])
    return tokenizer


def not_split() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return train(tokenizer)


def without_pieces() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def with_text_before() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.normalizer = normalizers.Prepend("x")
    return tokenizer


def drops_merges() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(dropout=0.5))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train(tokenizer)


def cut_short() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.enable_truncation(3)
    return tokenizer


def with_added(token: AddedToken) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = gpt2()
        tokenizer.add_tokens([token])
        return tokenizer

    return make


def with_control_tokens() -> Tokenizer:
    tokenizer = gpt2()
    tokenizer.add_special_tokens([AddedToken("a b", special=True)])
    tokenizer.encode_special_tokens = False
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        prefixed,
        split_otherwise,
        not_split,
        without_pieces,
        with_text_before,
        cut_short,
        drops_merges,
        with_control_tokens,
        with_added(AddedToken("red circle")),
        with_added(AddedToken(" ")),
        with_added(AddedToken("<box>", lstrip=True)),
        with_added(AddedToken("<box>", rstrip=True)),
        lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
    ],
)
def test_any_other_tokenizer_is_left_alone(make: Callable[[], Tokenizer]) -> None:
    assert not splits_at_blanks(make())
