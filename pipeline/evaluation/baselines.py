"""Captions that need no language model: what a trained one has to beat.

`most_frequent` gives every image the most common training caption. `nearest_neighbour` gives it a
caption of the training image whose pooled CLIP embedding is the most similar.
"""

from pipeline.engine.stage import InputArtifact
from storage.sql.queries import Database
from storage.tables import read_table

_MOST_FREQUENT = """
SELECT text FROM examples WHERE kind = 'caption' AND split = 'train'
GROUP BY text ORDER BY count(*) DESC, text LIMIT 1
"""
# Materialized: unnested, DuckDB joins all images with all others, 400 times as slow. Ties
# are broken by the images' hashes, independent of the order of threads. An embedding of zeros has
# no direction: its NaN, which DuckDB would rank first, is below any cosine.
_NEAREST = """
WITH trained AS MATERIALIZED (
    SELECT sha256, any_value(pooled) AS pooled, arg_min(text, example_id) AS caption
    FROM examples JOIN features USING (sha256)
    WHERE kind = 'caption' AND examples.split = 'train' GROUP BY sha256
), tested AS MATERIALIZED (
    SELECT sha256, any_value(pooled) AS pooled FROM examples JOIN features USING (sha256)
    WHERE kind = 'caption' AND examples.split = 'test' GROUP BY sha256
), nearest AS (
    SELECT tested.sha256, max({
        'similarity': coalesce(nullif(
            array_cosine_similarity(tested.pooled, trained.pooled), 'nan'::FLOAT), -2),
        'sha256': trained.sha256
    }) AS best FROM tested, trained GROUP BY tested.sha256
)
SELECT nearest.sha256, caption
FROM nearest JOIN trained ON trained.sha256 = best.sha256 ORDER BY nearest.sha256
"""


def baseline_captions(
    examples: InputArtifact, features: InputArtifact, threads: int | None
) -> dict[str, dict[str, str]]:
    """Return the caption of every test image by its hash, for each baseline.

    There are no baselines where there are no captions.
    """
    columns = ["example_id", "kind", "split", "sha256", "text"]
    sources = {
        "examples": read_table(examples.path("examples.parquet"), columns),
        "features": features.paths("index-*.parquet"),
    }
    with Database(sources, threads=threads) as database:
        commonest = database.query(_MOST_FREQUENT)["text"].to_pylist()
        if not commonest:
            return {}
        nearest = database.query(_NEAREST).to_pylist()
    by_hash = {row["sha256"]: row["caption"] for row in nearest}
    return {
        "most_frequent": dict.fromkeys(by_hash, commonest[0]),
        "nearest_neighbour": by_hash,
    }
