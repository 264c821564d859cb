"""`phivision similar`: the images nearest to an image, by pooled embedding."""

from flows.printing import print_rows
from flows.similar_images import find_similar
from pipeline.catalog.catalog import Catalog
from pipeline.settings import Settings


def print_similar(catalog: Catalog, image: str, count: int, settings: Settings) -> None:
    """Print the nearest images of the store, the nearest first.

    Raises:
        PipelineError: There are no embeddings yet, or no such image.
    """
    rows = find_similar(catalog, image, count, settings)
    columns = ["similarity", "image_id", "split", "file_name", "caption"]
    print_rows(columns, [[row[name] for name in columns] for row in rows])
