"""Accessibility of a page as axe-core judges it."""

from typing import Any

LEVELS = ("serious", "critical")


def serious_faults(page: Any) -> list[tuple[str, str, str]]:
    """Return rule, help and first place of each serious fault of a Playwright page."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        (each["id"], each["help"], each["nodes"][0]["html"][:200])
        for each in found
        if each["impact"] in LEVELS
    ]
