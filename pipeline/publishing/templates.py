"""How cards are rendered: jinja2 templates, in which a missing value is an error."""

from jinja2 import Environment, StrictUndefined

# Markdown, so nothing is escaped.
TEMPLATES = Environment(  # noqa: S701
    trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
)
