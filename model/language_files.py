"""Writing a language model into a folder, silently: the pipeline shows its own progress."""

from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()


def write_language_files(language_model: PreTrainedModel, folder: Path) -> None:
    """Write config and weights (safetensors) in Hugging Face's layout."""
    language_model.save_pretrained(folder)
