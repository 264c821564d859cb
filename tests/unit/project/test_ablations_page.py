"""The ablations of the documentation are variants that `phivision compare` takes."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

from flows.commands.compare import read_variants
from flows.commands.options import changes_of
from pipeline.recipe.presets import preset

PAGE = Path(__file__).resolve().parents[3] / "docs" / "ablations.md"


def test_every_variant_of_the_page_is_a_recipe_with_a_row_of_its_own() -> None:
    text = PAGE.read_text()
    (command,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    words = shlex.split(command)
    given = list(pairwise(words))
    shared = changes_of([value for name, value in given if name == "--set"])
    variants = read_variants([value for name, value in given if name == "--variant"])
    recipes = {
        name: preset("demo").override({**shared, **own}).model_dump_json()
        for name, own in variants.items()
    }
    assert len(set(recipes.values())) == len(recipes) == 9
    rows = re.findall(r"^\| ([^|]+?) \| \d", text, re.MULTILINE)
    assert rows == list(recipes)
