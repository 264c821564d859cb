"""Languages that put no blanks between words: their characters are counted and scored."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.filters import MACROS
from pipeline.data.spaceless import words
from pipeline.evaluation.metrics import answer_metrics
from pipeline.evaluation.scorers.captions import score_captions
from pipeline.evaluation.scorers.ptb_tokenizer import tokenize
from pipeline.evaluation.scorers.vqa import answer_accuracy
from storage.sql.queries import Database


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("一只黑猫\uff0c坐着。", "一 只 黑 猫 坐 着"),
        ("第39张 T-shirt!", "第 39 张 t-shirt"),
        ("赤いボールが「3つ」ある", "赤 い ボ ー ル が 3 つ あ る"),
        ("か\u3099", "が"),  # taken apart, as macOS does
        ("แมวสีดำ", "แ ม ว สี ด ำ"),  # a vowel above belongs to its consonant
        ("हिन्दी में चाँद", "हिन्दी में चाँद"),  # its vowels are marks, its words have blanks
        ("قِطّة سوداء", "قِطّة سوداء"),
        ("빨간 공", "빨간 공"),  # Korean has blanks
        ("Möwe am Meer.", "möwe am meer"),
    ],
)
def test_a_character_without_blanks_around_it_is_a_token(caption: str, tokens: str) -> None:
    assert " ".join(tokenize(caption)) == tokens


def test_a_chinese_caption_is_scored_by_what_it_shares() -> None:
    references = [["一只黑猫坐在桌子上。"], ["两只狗在草地上跑。"]]
    right = score_captions(["一只黑猫坐在桌子上", "两只狗在草地上跑"], references)
    near = score_captions(["一只白猫坐在桌子上", "两只狗在草地上睡"], references)
    wrong = score_captions(["红色的汽车", "红色的汽车"], references)
    for metric in ("bleu_4", "cider_d", "rouge_l"):
        assert right.corpus[metric] > near.corpus[metric] > wrong.corpus[metric]
    assert right.corpus["bleu_4"] == pytest.approx(1)


def test_answers_are_compared_without_the_marks_of_their_script() -> None:
    assert answer_accuracy("红色。", ["红色"]) == 1
    assert answer_accuracy("赤い、丸い", ["赤い 丸い"]) == 1
    assert answer_accuracy("红色", ["蓝色"]) == 0


def test_the_length_of_an_answer_is_that_of_its_characters() -> None:
    row = {"image_id": 1, "prediction": "红红红红红红", "references": ["红色圆形"], "score": 0.0}
    found = {each.metric: each for each in answer_metrics([row])}
    length, again = found["answer_length_ratio"], found["answer_repetition"]
    assert length.statistic(length.parts.sum(axis=0)) == 6 / 4
    assert again.statistic(again.parts.sum(axis=0)) == 2 / 3  # of three runs of four


@settings(max_examples=25)
@given(
    st.lists(
        st.sampled_from(
            ["a", "cat", " ", "  ", "黑", "猫", "。", "ボ", "ー", "ที่", "39", "é", "빨"]
        ),
        max_size=12,
    )
)
def test_sql_and_python_count_the_same_words(parts: list[str]) -> None:
    text = "".join(parts)
    with Database({}, macros=MACROS, threads=1) as database:
        counted = database.query("SELECT words(tidy($text)) AS n", {"text": text}).to_pylist()
    assert counted[0]["n"] == max(1, len(words(text)))  # of an empty text, SQL says 1
