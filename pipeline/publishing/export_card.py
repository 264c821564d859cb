"""The model card of an exported repository: the bundle's own card with what others need to know.

The bundle's card has the scores with their intervals; added here are the header that the Hugging
Face Hub reads, data and licences, the recipe, the digests and how to load it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from huggingface_hub import ModelCard

from pipeline.publishing.licences import Origin, origins
from pipeline.publishing.templates import TEMPLATES
from pipeline.recipe.recipe import flatten

_SECTIONS = """
{{ loading }}
## Data and licences

| part | what | licence |
|---|---|---|
{% for origin in origins %}
| {{ origin.part }} | {{ origin.what }} | {{ origin.licence }} |
{% endfor %}

The strictest of these licences applies to the whole.

## Made from

A stage's fingerprint says what went in, its digest what came out. `provenance.json` has both in
full, with the libraries' versions.

| stage | fingerprint | digest |
|---|---|---|
{% for stage, made in stages.items() %}
| {{ stage }} | `{{ made.fingerprint[:16] }}` | `{{ made.digest[:16] }}` |
{% endfor %}

<details><summary>Recipe</summary>

```
{% for name, value in recipe %}
{{ name }} = {{ value }}
{% endfor %}
```

</details>
"""


class HowToLoad(Protocol):
    """What the card says about loading."""

    def text(self, packages: Mapping[str, str]) -> str:
        """Return the section, as Markdown; `packages` are the versions that were used."""
        ...


def export_card(readme: str, provenance: Mapping[str, Any], loading: HowToLoad) -> str:
    """Return the card of a repository, as Markdown with the hub's header."""
    sources = origins(provenance["recipe"])
    card = ModelCard(readme)
    for name, value in _header(sources).items():
        setattr(card.data, name, value)
    card.text = f"{card.text.rstrip()}\n" + TEMPLATES.from_string(_SECTIONS).render(
        loading=loading.text(provenance["stages"]["publish"]["packages"]),
        origins=sources,
        stages=provenance["stages"],
        recipe=sorted(flatten(provenance["recipe"])),
    )
    return str(card)


def _header(sources: Sequence[Origin]) -> dict[str, Any]:
    """Return the metadata that the hub shows and searches."""
    header: dict[str, Any] = {
        "pipeline_tag": "image-text-to-text",
        "language": "en",
        "tags": ["phivision", "vision-language-model"],
    }
    if all(origin.is_ours for origin in sources):
        header["license"] = "apache-2.0"
    else:
        header |= {"license": "other", "license_name": "see-data-and-licences"}
    for name, part in (("base_model", "language model"), ("datasets", "conversations")):
        repositories = [o.repository for o in sources if o.part == part and o.repository]
        header |= {name: repositories} if repositories else {}
    return header
