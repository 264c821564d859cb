"""The columns of a filter that are computed from embeddings; imports no DuckDB."""

from collections.abc import Mapping

SIMILARITIES = ("duplicate_similarity", "test_similarity")
CLIP_SCORE = "clip_score"


def uses_embeddings(filters: Mapping[str, str]) -> bool:
    """Return whether a filter mentions a column for which images have to be embedded first."""
    return any(mentions(filters, name) for name in (*SIMILARITIES, CLIP_SCORE))


def mentions(filters: Mapping[str, str], column: str) -> bool:
    """Return whether a filter mentions a column."""
    return any(column in predicate for predicate in filters.values())
