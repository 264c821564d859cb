"""Presence questions and hallucinated objects."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.scorers.chair import ObjectNames
from pipeline.evaluation.scorers.pope import SETS, PresenceAsker

KITCHEN = {
    1: ["cup", "fork", "cup"],
    2: ["cup", "fork"],
    3: ["cup", "bowl"],
    4: ["apple"],
}


def test_negatives_come_from_what_is_absent() -> None:
    asked = PresenceAsker(KITCHEN, seed=0).ask(4, most=3)
    assert [(q.category, q.present) for q in asked if q.present] == [("apple", True)]
    popular = [q.category for q in asked if not q.present and "popular" in q.sets]
    assert popular == ["cup"]


def test_adversarial_negatives_stand_beside_what_is_there() -> None:
    asked = PresenceAsker(KITCHEN, seed=0).ask(3, most=1)
    assert [q.category for q in asked if not q.present and "adversarial" in q.sets] == ["fork"]


def test_the_article_fits() -> None:
    (apple, *_) = PresenceAsker(KITCHEN, seed=0).ask(4, most=1)
    assert apple.text("Is there {object}?") == "Is there an apple?"


@given(
    st.dictionaries(st.integers(0, 9), st.lists(st.sampled_from("abcdef"), max_size=6)),
    st.integers(1, 4),
)
def test_every_set_asks_as_often_for_what_is_there(
    objects: dict[int, list[str]], most: int
) -> None:
    asker = PresenceAsker(objects, seed=1)
    for image, names in objects.items():
        asked = asker.ask(image, most)
        for name in SETS:
            mine = [q for q in asked if name in q.sets]
            assert sum(q.present for q in mine) * 2 == len(mine)
            assert all((q.category in names) == q.present for q in mine)


def test_longer_names_win_and_plurals_count() -> None:
    names = ObjectNames({"dog", "hot dog", "person", "elephant", "knife"})
    assert names.mentioned("A hot dog beside two dogs.") == ["hot dog", "dog"]
    assert names.mentioned("a baby elephant and three men with knives") == [
        "elephant",
        "person",
        "knife",
    ]


def test_what_references_name_is_no_hallucination() -> None:
    names = ObjectNames({"circle", "square", "cross"})
    wrong, mentions = names.hallucinated(
        "Circles, a square and a cross", ["circle"], ["a red square"]
    )
    assert (wrong, mentions) == (["cross"], 3)
