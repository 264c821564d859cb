"""Filters as SQL: each row that is left out gets exactly one reason, the first that applies.

A filter is a reason and a predicate over the columns of its relation (below). Adding one is one
line here.
"""

from pipeline.data.image_names import FOUND_SQL
from pipeline.data.spaceless import UNIT_SQL
from pipeline.recipe.parts import ExamplesPart

Filter = tuple[str, str]

# Relation: captions joined with images (width, height are null where the image is missing).
CAPTION_FILTERS: tuple[Filter, ...] = (
    ("image missing", "width IS NULL"),
    ("empty", "caption = ''"),
    ("refusal", "list_any_in(lower(caption), $refusals)"),
    ("too many characters", "length(caption) >= $caption_max_characters"),
    ("too few words", "words(caption) < $caption_min_words"),
    ("aspect ratio", "greatest(width, height) > $max_aspect_ratio * least(width, height)"),
    ("duplicate", "copy > 1"),
)

# Relation: conversations joined with images; `turns` is a list of {speaker, text}. The
# image_name of a conversation without an image is null.
CONVERSATION_FILTERS: tuple[Filter, ...] = (
    ("ambiguous image", "matches > 1"),
    ("image missing", "width IS NULL AND image_name IS NOT NULL"),
    ("odd turns", "len(turns) = 0 OR len(turns) % 2 = 1"),
    ("speakers do not alternate", "NOT alternating"),
    (
        "image marker count",
        "CASE WHEN image_name IS NULL THEN markers > 0 ELSE markers <> 1 + len(more_images) "
        "OR NOT contains(turns[1].text, '<image>') OR len(list_filter(turns, lambda t: "
        "t.speaker = 'gpt' AND contains(t.text, '<image>'))) > 0 END",
    ),
    ("empty turn", "len(list_filter(turns, lambda t: bare(t.text) = '')) > 0"),
    (
        "speaks of captions or boxes",
        "len(list_filter(turns, lambda t: t.speaker = 'gpt' "
        "AND list_any_in(lower(t.text), $forbidden_answers))) > 0",
    ),
    ("aspect ratio", "greatest(width, height) > $max_aspect_ratio * least(width, height)"),
    ("duplicate", "copy > 1"),
)

# Of `captions` with their `place` in the order of their ids: what was said of that image before.
COPIES_SQL = """
SELECT place FROM captions QUALIFY row_number() OVER (
    PARTITION BY image_id, lower(tidy(caption)) ORDER BY place
) > 1
"""

# `captions` are some captions with their `place`, and `copy`: 2 for those of `COPIES_SQL`, else 1.
CAPTIONS_SQL = """
WITH cleaned AS (
    SELECT place, copy, caption_id, image_id, tidy(caption) AS caption FROM captions
)
SELECT caption_id, image_id, caption, split, sha256, source, {reason} AS reason
FROM cleaned LEFT JOIN images USING (image_id) ORDER BY place
"""

# The image of each conversation, null columns where it is not known or ambiguous. Needs no turns.
SHOWN_SQL = """
WITH {found}
SELECT n.conversation_id, n.path, f.matches, i.image_id, i.width, i.height, i.split, i.sha256
FROM named n LEFT JOIN found f USING (conversation_id)
LEFT JOIN images i ON i.image_id = f.image_id AND f.matches = 1
""".replace("{found}", FOUND_SQL)

# Equal for conversations that say the same about the same image, and for no others.
CONTENT_SQL = """
SELECT md5(concat_ws(' ',
    md5(coalesce('id ' || s.image_id, 'path ' || s.path, '')),
    md5(coalesce(more_images::VARCHAR, '')),
    md5(turns::VARCHAR)
)) AS content
FROM conversations JOIN shown s USING (conversation_id) ORDER BY conversation_id
"""

# `conversations` are some, with their `copy`: 2 if an earlier one has equal content, else 1.
CONVERSATIONS_SQL = """
WITH joined AS (
    SELECT n.*, s.matches, s.image_id, s.width, s.height, s.sha256,
        -- A text without an image is held out from nothing: no image of the test is in it.
        CASE WHEN n.image_name IS NULL THEN 'train' ELSE s.split END AS split,
        list_sum([
            len(string_split(t.text, '<image>')) - 1 FOR t IN n.turns
        ]) AS markers,
        list_aggregate([
            t.speaker = CASE WHEN p % 2 = 1 THEN 'human' ELSE 'gpt' END FOR t, p IN n.turns
        ], 'bool_and') AS alternating
    FROM conversations n JOIN shown s USING (conversation_id)
)
SELECT conversation_id, record_id, image_name, more_images, image_id, split, sha256, source,
    [CASE WHEN len(more_images) > 0 THEN tidy(t.text) ELSE bare(t.text) END FOR t IN turns]
        AS texts, {reason} AS reason
FROM joined ORDER BY conversation_id
"""

# The image of each further name; `conversations` has one row for each.
MORE_SQL = """
WITH {found}
SELECT conversation_id, coalesce(f.matches, 0) AS matches, i.image_id, i.sha256, i.split
FROM named n LEFT JOIN found f USING (conversation_id)
LEFT JOIN images i ON i.image_id = f.image_id AND f.matches = 1
ORDER BY conversation_id
""".replace("{found}", FOUND_SQL)

# Empty if no image is on both sides; images are compared by content, not by id or name.
LEAKS_SQL = """
WITH trained AS (SELECT DISTINCT split, image_id, sha256 FROM used WHERE split <> 'test'),
tested AS (SELECT sha256, min(image_id) AS test_id FROM used WHERE split = 'test' GROUP BY ALL)
SELECT image_id, split, test_id FROM trained JOIN tested USING (sha256) ORDER BY ALL
"""

MACROS = (
    # Whitespace of every kind (no-break space too) becomes one space; the ends are stripped. RE2's
    # \s is ASCII only: \p{Z} are Unicode's separators, \p{Cc} its control characters.
    r"CREATE MACRO tidy(t) AS "
    r"trim(regexp_replace(t, '[\p{Z}\p{Cc}\x{200B}\x{FEFF}]+', ' ', 'g'))",
    "CREATE MACRO bare(t) AS tidy(replace(t, '<image>', ' '))",
    # In scripts without spaces each character counts as a word.
    f"CREATE MACRO words(t) AS "
    rf"len(string_split(tidy(regexp_replace(t, '({UNIT_SQL})', ' \1 ', 'g')), ' '))",
    "CREATE MACRO list_any_in(t, parts) AS "
    "len(list_filter(parts, lambda part: contains(t, part))) > 0",
)


def first_reason(filters: tuple[Filter, ...]) -> str:
    """Return the SQL expression of a row's first reason to be dropped, null if there is none."""
    cases = " ".join(f"WHEN {predicate} THEN '{reason}'" for reason, predicate in filters)
    return f"CASE {cases} END"


def parameters(examples: ExamplesPart, names: tuple[str, ...]) -> dict[str, object]:
    """Return the recipe's values that a statement binds."""
    values = examples.model_dump()
    return {n: list(v) if isinstance(v := values[n], tuple) else v for n in names}
