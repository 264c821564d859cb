"""METEOR as the Java program gives it; skipped where there is no Java or no pycocoevalcap."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from flows.cli import main
from pipeline.evaluation.scorers.java import meteor
from tests.support.small_store import build_store

needs_java = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="METEOR is a Java program of pycocoevalcap: no Java, or no extra java-metrics, here",
)


@needs_java
def test_meteor_is_the_published_figure_and_silence_scores_nothing() -> None:
    # Published by nlg-eval in its own tests, for this very pair.
    references = ["this is a test", "this is also a test"]
    found = meteor(
        {
            "published": [("This is a good test.", references)],
            "silent": [("", references), ("!", references)],
            "half silent": [("this is a good test", references), ("", references)],
        }
    )
    assert found["published"] == pytest.approx(0.44434387, abs=1e-6)
    assert found["silent"] == 0
    assert 0 < found["half silent"] < found["published"]


@needs_java
@pytest.mark.realdata
def test_meteor_is_the_official_one_on_real_captions(realdata: Path) -> None:
    path = realdata / "metrics" / "fakecap_subset_official_scores.json"
    official = json.loads(path.read_text("utf-8"))
    pairs = [(row["hypothesis"], row["references"]) for row in official["per_image"]]
    found = meteor({"all": pairs})["all"]
    assert found == pytest.approx(official["scores"]["METEOR"], rel=0.005)


def test_a_missing_java_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build_store(tmp_path, runs=1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["scores", "--java", "--store", store.uri])
    message = capsys.readouterr().err
    assert "java was not found" in message
    assert "leave --java out" in message
