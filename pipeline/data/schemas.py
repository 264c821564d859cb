"""Schemas of the tables that stages write; the catalog's views show the same columns."""

import pyarrow as pa

CONDITIONS = ("real", "shuffled", "blind")  # what the model is shown in evaluation
# Captions that need no language model; the last one where the model's captions are chosen so, too.
BASELINES = ("most_frequent", "nearest_neighbour", "neighbour_consensus")
TEXT_ONLY = "text_only"  # the language model alone, without any image prefix

IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("origin", pa.string()),
        ("file_name", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("url", pa.string()),
    ]
)
IMAGE_FILES = pa.schema([("sha256", pa.string()), ("data", pa.binary())])
CAPTIONS = pa.schema(
    [("caption_id", pa.int64()), ("image_id", pa.int64()), ("caption", pa.string())]
)
OBJECTS = pa.schema(
    [
        ("object_id", pa.int64()),
        ("image_id", pa.int64()),
        ("category", pa.string()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("width", pa.float64()),
        ("height", pa.float64()),
        ("area", pa.float64()),
        ("iscrowd", pa.bool_()),
    ]
)
DROPS = pa.schema(
    [
        ("stage", pa.string()),
        ("kind", pa.string()),
        ("record", pa.string()),
        ("file", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
TURN = pa.struct([("speaker", pa.string()), ("text", pa.string())])
CONVERSATIONS = pa.schema(
    [
        ("conversation_id", pa.int64()),
        ("source", pa.string()),
        ("record_id", pa.string()),
        ("image_name", pa.string()),
        ("more_images", pa.list_(pa.string())),
        ("turns", pa.list_(TURN)),
    ]
)
EXAMPLES = pa.schema(
    [
        ("example_id", pa.int64()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("split", pa.string()),
        ("image_id", pa.int64()),
        ("sha256", pa.string()),
        ("more_sha256", pa.list_(pa.string())),
        ("source_id", pa.int64()),
        ("turns", pa.int32()),
        ("text", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
    ]
)
# Row by row beside the examples: equal keys mean equal tokens (see `pipeline.data.known_tokens`).
TOKEN_KEYS = pa.schema([("key", pa.binary(16))])
QUESTIONS = pa.schema(
    [
        ("question_id", pa.int64()),
        ("example_id", pa.int64()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("image_id", pa.int64()),
        ("sha256", pa.string()),
        ("more_sha256", pa.list_(pa.string())),
        ("turn", pa.int32()),
        ("question", pa.string()),
        ("answer", pa.string()),
    ]
)
PREDICTIONS = pa.schema(
    [
        ("prediction_id", pa.int64()),
        ("stage", pa.string()),
        ("split", pa.string()),
        ("condition", pa.string()),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("image_id", pa.int64()),
        ("question_id", pa.int64()),
        ("question", pa.string()),
        ("prediction", pa.string()),
        ("references", pa.list_(pa.string())),
        ("ended", pa.bool_()),
        ("tokens", pa.int32()),
        ("score", pa.float64()),
        ("sets", pa.list_(pa.string())),
        ("hallucinated", pa.list_(pa.string())),
    ]
)
METRICS = pa.schema(
    [
        ("stage", pa.string()),
        ("split", pa.string()),
        ("condition", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("count", pa.int64()),
    ]
)
METRICS_BY_SOURCE = METRICS.insert(0, pa.field("source", pa.string()))
TRAINING = pa.schema(
    [
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)


def drop(stage: str, kind: str, record: object, file: str, reason: str, detail: str = "") -> dict:
    """Return one row of the `drops` table: what was left out, and why."""
    return {
        "stage": stage,
        "kind": kind,
        "record": str(record),
        "file": file,
        "reason": reason,
        "detail": detail[:500],
    }
