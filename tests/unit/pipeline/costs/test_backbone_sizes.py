"""Where a plan finds the dimensions of a language model: no weights are fetched for them."""

import json
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from model.errors import ModelError
from model.language_table import LANGUAGE_MODELS
from pipeline.costs.backbone_sizes import language_line
from pipeline.costs.training import trainings
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from tests.support.fake_hub import FakeHub
from tests.support.hub_fixtures import go_offline, lose_network
from tests.support.loopback import LoopbackServer

QWEN = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
QWEN_PARAMETERS = 494_032_768  # as its page says, with 27,648 biases that a plan leaves out


def with_model(place: object) -> Recipe:
    return preset("coco").override(
        {"backbones.lm_repository": str(place), "backbones.lm_revision": "main"}
    )


def parameters(place: object) -> int:
    return language_line(with_model(place).backbones).parameters


def test_the_demos_dimensions_come_from_the_recipe() -> None:
    tiny = language_line(preset("demo").backbones)
    assert (tiny.vocabulary, tiny.width, tiny.layers, tiny.inner) == (512, 96, 2, 384)


@pytest.mark.parametrize(
    "place",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct@main",
        "./.weights/SmolLM2-135M-Instruct.Q4_1.gguf",
        "s3://bucket/SmolLM2-135M-Instruct/",
    ],
)
def test_a_model_is_planned_by_its_name_wherever_it_lies(place: str) -> None:
    recipe = preset("small").override({"backbones.lm_repository": place})
    assert language_line(recipe.backbones).parameters == 134_515_008


def test_a_folder_is_planned_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    assert parameters(tmp_path) == QWEN_PARAMETERS - 27_648
    every = {training.name: training for training in trainings(with_model(tmp_path))}
    assert every["finetune full"].trained > QWEN_PARAMETERS - 27_648


def test_a_config_on_this_machine_counts_more_than_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "phi-2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    assert parameters(folder) == QWEN_PARAMETERS - 27_648


def test_only_the_config_is_fetched_from_the_hub(
    fake_hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_hub.publish(
        "qwen/small", {"config.json": json.dumps(QWEN).encode(), "model.safetensors": b"x" * 1000}
    )
    assert parameters("qwen/small") == QWEN_PARAMETERS - 27_648
    assert not [path for _, path in fake_hub.asked if path.endswith(".safetensors")]
    go_offline(monkeypatch)
    assert parameters("qwen/small") == QWEN_PARAMETERS - 27_648  # out of the cache


def test_a_config_is_fetched_from_a_url(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with LoopbackServer(handler) as server:
        assert parameters(server.url) == QWEN_PARAMETERS - 27_648


def test_without_a_network_the_refusal_says_so(
    fake_hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del fake_hub
    lose_network(monkeypatch)
    with pytest.raises(PipelineError, match="someone/else"):
        parameters("someone/else")
    assert parameters("microsoft/phi-2") == LANGUAGE_MODELS["microsoft/phi-2"].parameters


def test_a_family_without_a_known_layout_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**QWEN, "model_type": "mamba"}))
    with pytest.raises(ModelError, match=r"family mamba[\s\S]*qwen2"):
        parameters(tmp_path)


def test_a_config_without_a_size_is_refused_by_the_field(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**QWEN, "vocab_size": None}))
    with pytest.raises(ModelError, match="vocab_size"):
        parameters(tmp_path)


def test_a_remote_gguf_file_is_refused_with_a_remedy() -> None:
    with pytest.raises(PipelineError, match="name the model's repository"):
        parameters("https://example.org/other.gguf")


def test_plans_of_any_config_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    code = (
        "import sys\n"
        "from flows.cli import main\n"
        f"main(['plan', '--preset', 'coco', '--hardware', '24GB', "
        f"'--set', 'backbones.lm_repository={tmp_path}'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "LoRA" in done.stdout
