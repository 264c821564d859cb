"""Which image a conversation is about, by the name that it gives, as SQL over both tables."""

# LLaVA's mixtures name an image by a path whose root may differ from the dataset's: one path must
# end with the other, by whole components. COCO 2014's prefix before the 12 digits is cut off. A
# path that also names a split (train2017/000001.jpg) means an image of that split. Images with
# equal content count as one, whichever of them is named. In a mixture, images of the source that
# the path begins with, or that has the name of the conversations' own source, come first.
FOUND_SQL = r"""
named AS (
    SELECT *, nfc_normalize(regexp_replace(
        replace(image_name, '\', '/'), '^(.*/)?COCO_(train|val)2014_', ''
    )) AS path, regexp_replace(path, '^.*/', '') AS base
    FROM conversations
), origins AS (
    SELECT DISTINCT source, origin, regexp_replace(origin, '^.*/', '') AS folder FROM images
), known AS (
    SELECT image_id, sha256, i.source, nfc_normalize(replace(file_name, '\', '/')) AS path,
        regexp_replace(path, '^.*/', '') AS base,
        ['/' || o || '/' || path FOR o IN [origin, folder]] AS own,
        ['/' || o || '/' || path FOR o IN (
            SELECT list(DISTINCT folder) FROM origins
        ) IF o <> folder] AS others
    FROM images i JOIN origins USING (source, origin)
), ending AS (
    SELECT n.conversation_id, k.image_id, k.sha256,
        k.path = n.path OR len([o FOR o IN k.own IF ends_with('/' || n.path, o)]) > 0 AS exact,
        n.source IS NOT DISTINCT FROM k.source OR starts_with(n.path, k.source || '/') AS mine
    FROM named n JOIN known k ON k.base = n.base AND (
        ends_with('/' || k.path, '/' || n.path) OR ends_with('/' || n.path, '/' || k.path)
    ) AND len([o FOR o IN k.others IF ends_with('/' || n.path, o)]) = 0
    QUALIFY mine OR NOT bool_or(mine) OVER (PARTITION BY n.conversation_id)
), near AS (
    SELECT * FROM ending
    QUALIFY exact OR NOT bool_or(exact) OVER (PARTITION BY conversation_id)
), found AS (
    SELECT conversation_id, count(DISTINCT sha256) AS matches, min(image_id) AS image_id
    FROM near GROUP BY conversation_id
)"""

# The image that each conversation is about, where it is known and unambiguous.
NAMED_IMAGES_SQL = """
WITH {found}
SELECT conversation_id, i.split, i.sha256
FROM found JOIN images i USING (image_id) WHERE matches = 1 ORDER BY conversation_id
""".replace("{found}", FOUND_SQL)
