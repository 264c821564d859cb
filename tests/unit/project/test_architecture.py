"""ARCHITECTURE.md names what is there, and the tests mirror the source tree."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`((?:flows|pipeline|model|storage|tests)/[\w/]+(?:\.py)?)`", PAGE))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_reading_path_is_short_and_names_each_file_once() -> None:
    files = re.findall(r"`([\w/]+\.py)`", section("Reading path"))
    assert len(files) == len(set(files))
    assert 25 <= len(files) <= 40


def test_the_tree_names_every_package() -> None:
    tree = section("The tree")
    packages = [
        path.parent.relative_to(ROOT)
        for package in ("flows", "pipeline", "storage")
        for path in sorted((ROOT / package).rglob("__init__.py"))
    ]
    assert [str(p) for p in packages if f"{p.name}/" not in tree] == []


def test_unit_tests_lie_in_folders_of_the_source_tree() -> None:
    unit = ROOT / "tests/unit"
    folders = {path.parent.relative_to(unit) for path in unit.rglob("test_*.py")}
    assert [
        str(f) for f in sorted(folders) if f.name != "project" and not (ROOT / f).is_dir()
    ] == []
