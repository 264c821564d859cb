"""The chat as a Hugging Face Space: `python app.py` in the Space, as the Space itself runs it.

The page is `flows/chat/page.py`, the same as in `phivision chat`; `deployments.space.assemble`
puts it beside this file. The model is the folder `bundle/`, or PHIVISION_BUNDLE=hf://owner/name.
"""

import os
from pathlib import Path

from flows.chat.launching import Door
from flows.chat.models import only
from flows.chat.server import serve_chat
from model.assistant import load_assistant


def main() -> None:
    """Serve the chat until stopped.

    A Space sets GRADIO_SERVER_NAME to be reachable; anywhere else the chat is on loopback.
    """
    import torch

    source = os.environ.get("PHIVISION_BUNDLE") or str(Path(__file__).parent / "bundle")
    assistant = load_assistant(source, "cuda" if torch.cuda.is_available() else "cpu")
    door = Door(
        host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    )
    serve_chat(only(assistant), assistant.folder / "examples", door)


if __name__ == "__main__":
    main()
