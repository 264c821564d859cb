"""Scores and images as they are printed: whole words on any terminal, what matters first."""

import re

import pytest

from flows.cli import main
from storage.store.artifacts import ArtifactStore
from tests.support.small_store import build_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return build_store(tmp_path_factory.mktemp("printed"))


@pytest.mark.parametrize(
    ("width", "ends"), [(200, r"\[-?\d\.\d{3}, \d\.\d{3}\]"), (80, r"±\.\d\d"), (60, "low +high")]
)
def test_scores_fit_the_terminal_without_breaking_a_word(
    store: ArtifactStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    ends: str,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    main(["scores", "--store", store.uri])
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("model of finetune") :]
    assert all(len(line) <= width for line in table)
    starts = [line.split()[0] for line in table if line.startswith(("cider", "answer"))]
    assert set(starts) == {"cider_d", "answer_accuracy"}
    assert re.search(ends, "\n".join(table))


@pytest.mark.parametrize(
    ("image", "told"),
    [("7", "image 7 was left out: broken image, truncated"), ("5", "there is no image 5")],
)
def test_of_an_image_that_is_not_there_the_reason_is_told(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], image: str, told: str
) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["show", image, "--store", store.uri])
    assert told in capsys.readouterr().err


def test_an_image_is_shown_with_what_the_model_says_of_it_first(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["show", "108", "--store", store.uri])
    printed = capsys.readouterr().out
    head, _, rest = printed.partition("\ncaptions (")
    assert re.search(r"image 108 .*\nthe model's caption: A \w+ square and a wall\.", head)
    said = rest.partition("predictions (")[2].splitlines()[2:]  # behind the headings
    order = [tuple(line.split()[1:3]) for line in said]
    assert order[:2] == [("real", "caption"), ("real", "answer")]
    assert {condition for condition, _ in order[2:]} == {"shuffled", "blind"}
