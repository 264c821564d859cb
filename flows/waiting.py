"""A spinner or one line for waits of seconds whose progress cannot be measured."""

import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def waiting(text: str) -> Generator[None]:
    """Print on stderr what is waited for: beside a spinner on a terminal, as one line elsewhere."""
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False)
    if not console.is_terminal:
        print(f"{text} …", file=sys.stderr, flush=True)
        yield
        return
    with console.status(text):
        yield
