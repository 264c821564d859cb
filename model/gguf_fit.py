"""Which language models llama.cpp can load; read before training, so nothing heavy is imported.

Projector and encoders have the restrictions of `model.llava_fit`: llama.cpp's loader of
LLaVA's vision side has the same two plain layers and the same tower.
"""

# Families, by `model_type`, and llama.cpp's names of their architectures.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "phi": "phi2",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}


def gguf_language_obstacle(family: str) -> str:
    """Return why a language model of this `model_type` cannot be exported, "" if it can."""
    if family in ARCHITECTURES:
        return ""
    return (
        f"backbones.lm_repository is a '{family}', and the export to GGUF knows "
        f"{', '.join(ARCHITECTURES)}: choose a Llama, Qwen or Phi-2, e.g. "
        "HuggingFaceTB/SmolLM2-360M-Instruct"
    )
