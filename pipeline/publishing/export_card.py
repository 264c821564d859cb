"""The model card of an exported repository: the bundle's own card with what a stranger must know.

The bundle's card has the scores with their intervals; added here are the header that the Hugging
Face Hub reads, data and licences, the recipe, the digests and how to load it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard

from pipeline.publishing.export_loading import Loading
from pipeline.publishing.licences import Origin, origins
from pipeline.recipe.recipe import flatten

_SECTIONS = """
{loading}
## Data and licences

| part | what | licence |
|---|---|---|
{data}

The strictest of these licences applies to the whole.

## Made from

A stage's fingerprint says what went in, its digest what came out. `provenance.json` has both in
full, with the libraries' versions.

| stage | fingerprint | digest |
|---|---|---|
{stages}

<details><summary>Recipe</summary>

```
{recipe}
```

</details>
"""


def export_card(readme: str, provenance: Mapping[str, Any], loading: Loading) -> str:
    """Return the card of a repository, as Markdown with the hub's header.

    Args:
        readme: The bundle's own card.
        provenance: The content of `provenance.json`.
        loading: How the repository is loaded.
    """
    found = origins(provenance["recipe"])
    card = ModelCard(readme)
    for name, value in _header(found).items():
        setattr(card.data, name, value)
    rows = [f"| {origin.part} | {origin.what} | {origin.licence} |" for origin in found]
    stages = [
        f"| {stage} | `{made['fingerprint'][:16]}` | `{made['digest'][:16]}` |"
        for stage, made in provenance["stages"].items()
    ]
    fields = [f"{name} = {value}" for name, value in sorted(flatten(provenance["recipe"]))]
    card.text = (
        card.text.rstrip()
        + "\n"
        + _SECTIONS.format(
            loading=loading.text(provenance["stages"]["publish"]["packages"]),
            data="\n".join(rows),
            stages="\n".join(stages),
            recipe="\n".join(fields),
        )
    )
    return str(card)


def _header(found: Sequence[Origin]) -> dict[str, Any]:
    """Return what the hub shows and searches by."""
    header: dict[str, Any] = {"pipeline_tag": "image-text-to-text", "language": "en"}
    if all(origin.is_ours for origin in found):
        header["license"] = "apache-2.0"
    else:
        header |= {"license": "other", "license_name": "see-data-and-licences"}
    for name, part in (("base_model", "language model"), ("datasets", "conversations")):
        repositories = [o.repository for o in found if o.part == part and o.repository]
        header |= {name: repositories} if repositories else {}
    return header
