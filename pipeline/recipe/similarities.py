"""The columns of a filter that compare images by their embeddings; imports no DuckDB."""

from collections.abc import Mapping

SIMILARITIES = ("duplicate_similarity", "test_similarity")


def compares_images(filters: Mapping[str, str]) -> bool:
    """Return whether a filter mentions a column for which images have to be embedded first."""
    return any(name in predicate for predicate in filters.values() for name in SIMILARITIES)
