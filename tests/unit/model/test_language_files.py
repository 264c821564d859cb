"""Writing a language model: ordinary files, and not a word on the screen."""

import os
from pathlib import Path

from tests.support.forks import run_code

CODE = """
from pathlib import Path
from transformers import PhiConfig, PhiForCausalLM
from model.language_files import write_language_files

config = PhiConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=16)
write_language_files(PhiForCausalLM(config), Path({folder!r}))
"""


def test_a_model_is_written_without_a_word(tmp_path: Path) -> None:
    done = run_code(CODE.format(folder=str(tmp_path / "lm")), os.environ, 100)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    names = {path.name for path in (tmp_path / "lm").iterdir()}
    assert {"config.json", "model.safetensors"} <= names
