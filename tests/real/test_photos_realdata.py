"""`make photos` made small: real weights of both models on a few real COCO images and photographs.

The weights are those that `make photos` fetches into `.weights`. So little training shows that the
whole of it works at its real size, not that it sees.
"""

import json
from pathlib import Path

import pytest

from tests.conftest import Cli, ForkedCli, assignments

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / ".weights"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.realweights,
    pytest.mark.e2e,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not WEIGHTS.is_dir(), reason="no .weights: make photos fetches them"),
]
SMALL = {
    "images.validation_share": 0.15,
    "backbones.clip_pretrained": WEIGHTS / "tf_efficientnet_lite0",
    "backbones.lm_repository": WEIGHTS / "SmolLM2-135M-Instruct.Q4_1.gguf",
    "pretrain.epochs": 1,
    "pretrain.validate_every": 20,
    "finetune.epochs": 1,
    "finetune.validate_every": 20,
    "finetune.least_image_gain": 0,
    "evaluate.images": 24,
    "evaluate.likelihood_images": 16,
    "evaluate.pointing_images": 4,
    "evaluate.max_new_tokens": 16,
}


# All COCO images that there are, and as many of the 2,300 photographs.
LIMITS = {"coco": {}, "photos": {"images.limit": 218, "images.test_limit": 50}}


@pytest.fixture(scope="module", params=LIMITS)
def run(
    realdata: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Cli, str]:
    """Run the preset once; the gate may refuse what so little training made."""
    cli = ForkedCli(tmp_path_factory.mktemp("photos") / "store")
    root = realdata / request.param
    changes = assignments({"images.source.root": root, **SMALL, **LIMITS[request.param]})
    done = cli("run", "--preset", "photos", *changes, timeout=1400)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    return cli, done.stdout


def rows(cli: Cli, query: str) -> list[dict[str, object]]:
    return json.loads(cli.ok("sql", query, "--format", "json"))


def test_patches_are_those_of_the_real_encoder(run: tuple[Cli, str]) -> None:
    found = rows(
        run[0],
        "SELECT octet_length(patches) AS bytes, count(*) AS n FROM patches GROUP BY ALL",
    )
    assert found == [{"bytes": 49 * 1280 * 2, "n": 268}]  # float16


def test_all_linear_layers_are_adapted(run: tuple[Cli, str]) -> None:
    line = next(line for line in run[1].splitlines() if line.startswith("finetune"))
    assert "adapted=210/210" in line


def test_captions_are_words_about_held_out_images(run: tuple[Cli, str]) -> None:
    query = (
        "SELECT prediction FROM predictions "
        "WHERE stage = 'finetune' AND condition = 'real' AND kind = 'caption'"
    )
    captions = [str(row["prediction"]) for row in rows(run[0], query)]
    assert len(captions) == 24
    assert all(len(caption.split()) >= 3 for caption in captions)


def test_likelihoods_are_those_of_a_pretrained_language_model(run: tuple[Cli, str]) -> None:
    query = (
        "SELECT condition, value FROM metrics "
        "WHERE stage = 'finetune' AND split = 'test' AND metric = 'caption_nll'"
    )
    found = {row["condition"]: float(str(row["value"])) for row in rows(run[0], query)}
    assert found["real"] < 4.2  # without any training: 4.5 nats behind the prompt, 10.8 by chance
    assert found["real"] <= found["shuffled"] + 0.05
