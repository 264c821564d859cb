"""A chat with small limits on a slow machine: `python small_chat.py BUNDLE`."""

import sys
import time

from flows.chat.launching import Door
from flows.chat.limits import Limits
from flows.chat.models import only
from flows.chat.server import serve_chat
from flows.inference.engine import Engine
from flows.inference.limits import EngineLimits
from model.assistant import load_assistant

LIMITS = Limits(image_bytes=50_000, at_once=1, waiting=2, keep_seconds=12, folder_bytes=400_000)
PAUSE = 0.25  # seconds before each token


def main() -> None:
    """Serve until stopped."""
    assistant = load_assistant(sys.argv[1])
    inner = assistant.vlm.language_model.get_submodule("model")
    inner.register_forward_hook(lambda *_: time.sleep(PAUSE))
    models = only(assistant)
    models._loaded[models.first] = Engine(assistant, EngineLimits(at_once=1))
    serve_chat(models, None, Door(port=0), LIMITS)


if __name__ == "__main__":
    main()
