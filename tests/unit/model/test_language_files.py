"""Writing a language model: ordinary files, and not a word on the screen."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from pathlib import Path
from transformers import PhiConfig, PhiForCausalLM
from model.language_files import write_language_files

config = PhiConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=16)
write_language_files(PhiForCausalLM(config), Path(sys.argv[1]))
"""


def test_a_model_is_written_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path / "lm")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    names = {path.name for path in (tmp_path / "lm").iterdir()}
    assert {"config.json", "model.safetensors"} <= names
