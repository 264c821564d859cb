"""Greedy answers of an exported GGUF by llama.cpp; run by an interpreter with llama-cpp-python.

    python llama_cpp_answers.py MODEL MMPROJ PHOTOS TOKENS OUT

asks about each file of the folder PHOTOS, then without an image, and writes token ids and the
scores of each answer's first word to OUT, an `.npz` file. The attention's memory is float32. What
the file says is never written is not, as in llama.cpp's own programs.
"""

import base64
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import MTMDChatHandler

model, mmproj, photos, tokens, out = sys.argv[1:]
llm: Any = llama_cpp.Llama(
    model,
    chat_handler=MTMDChatHandler(mmproj, verbose=False, use_gpu=False),
    n_ctx=0,
    verbose=False,
    flash_attn=False,
    type_k=llama_cpp.GGML_TYPE_F32,
    type_v=llama_cpp.GGML_TYPE_F32,
)
texts = [llm._model.token_get_text(n) for n in range(llm.n_vocab())]
never = [n for n, text in enumerate(texts) if text.startswith(("[PAD", "<image_separator>"))]
rows: list[Any] = []


def keep(_: Any, scores: Any) -> Any:
    """Note the scores of the next word."""
    allowed = scores.copy()
    allowed[never] = -np.inf
    rows.append(allowed)
    return allowed


def asked(said: Any) -> tuple[list[int], Any]:
    """Return the ids of an answer, padded with -1, and the scores of its first word."""
    rows.clear()
    llm.create_chat_completion(
        messages=[{"role": "user", "content": said}],
        temperature=0,
        repeat_penalty=1.0,
        max_tokens=int(tokens),
        logits_processor=llama_cpp.LogitsProcessorList([keep]),
    )
    ids = [int(scores.argmax()) for scores in rows][: int(tokens)]
    return ids + [-1] * (int(tokens) - len(ids)), rows[0]


made = []
for photo in sorted(Path(photos).iterdir()):
    url = f"data:image/png;base64,{base64.b64encode(photo.read_bytes()).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    made.append(asked([image, {"type": "text", "text": f"What is in\n image  {photo.stem}?"}]))
made.append(asked("What is red?"))
np.savez(out, answers=[ids for ids, _ in made], first=[scores for _, scores in made])
