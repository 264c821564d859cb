"""Where images and conversations come from: one class per kind of source.

Besides its fields, an image source has texts for the bundle, the card and the licences, and the
name of the module of `pipeline.data.datasets` that reads it. These are not fields, so rewording
them re-runs nothing.
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.recipe.fields import Part, Positive, Share

APACHE = "Apache-2.0"
UNKNOWN = "to be stated by the model's author"
LCS = "as its owners say: that of CC-3M and, for the synthetic captions, of BLIP"


class DemoImages(Part):
    """A dataset that phivision renders itself, as COCO-format archives behind a `file://` URL."""

    kind: Literal["demo"] = "demo"
    module: ClassVar[str] = "pipeline.data.datasets.shapes.dataset"
    phrase: ClassVar[str] = "rendered shapes"
    title: ClassVar[str] = "coloured shapes, rendered by phivision"
    licence: ClassVar[str] = APACHE
    train: Positive = Field(description="Images rendered for train2017.")
    test: Positive = Field(description="Images rendered for val2017, never trained on.")


class FolderImages(Part):
    """COCO-format images anywhere: a folder, or a URL that ends where COCO's layout begins."""

    kind: Literal["folder"] = "folder"
    module: ClassVar[str] = "pipeline.data.datasets.coco_folder"
    phrase: ClassVar[str] = "images out of its maker's own folder"
    title: ClassVar[str] = "a dataset in COCO's format"
    licence: ClassVar[str] = UNKNOWN
    root: str = Field(
        description="Path or fsspec URL with annotations, train2017 and val2017, each an archive "
        "(.zip, .tar, .tar.gz) there or in annotations/ and zips/, or (not over HTTP) a folder."
    )


class Coco2017Images(Part):
    """The published COCO 2017 archives, checked against their MD5 sums."""

    kind: Literal["coco2017"] = "coco2017"
    module: ClassVar[str] = "pipeline.data.datasets.coco2017"
    phrase: ClassVar[str] = "photographs of COCO 2017"
    title: ClassVar[str] = "COCO 2017"
    licence: ClassVar[str] = (
        "annotations CC BY 4.0; images under Flickr's terms and each owner's licence"
    )
    root: str = Field(description="URL that has zips/ and annotations/ below it.")
    fetch: Literal["members", "whole", "addresses"] = Field(
        description="How images are fetched: only the chosen members of the remote zip (all of it "
        "if the server has no Range), the whole zip, or each by the `coco_url` of its record."
    )
    exclude_val2014: bool = Field(
        description="Leave out images of val2014, on which older test sets (Karpathy's, POPE, "
        "VQA v2) are built."
    )


class LcsImages(Part):
    """LCS-558K, LLaVA's captioned images for alignment, from the Hugging Face Hub."""

    kind: Literal["lcs558k"] = "lcs558k"
    module: ClassVar[str] = "pipeline.data.datasets.lcs558k"
    phrase: ClassVar[str] = "images of LCS-558K, from the web"
    title: ClassVar[str] = "LCS-558K"
    licence: ClassVar[str] = LCS
    repository: str = Field(description="Dataset repository, owner/name.")
    annotations: str = Field(description="LLaVA JSON inside the repository.")
    images: str = Field(description="Zip of the images inside the repository.")
    revision: str = Field(description="Commit or tag; a commit makes the run repeatable.")
    test_share: Share = Field(description="Share of the images held out as test images.")


class TableImages(Part):
    """A table with captions: CSV, TSV, JSON lines or Parquet, local, remote or on the Hub."""

    kind: Literal["table"] = "table"
    module: ClassVar[str] = "pipeline.data.datasets.table"
    phrase: ClassVar[str] = "images out of its maker's own table"
    title: ClassVar[str] = "a table of captioned images"
    licence: ClassVar[str] = UNKNOWN
    path: str = Field(
        description="Path, fsspec URL, or hf://datasets/owner/name/file of a table whose rows name "
        "an image and a caption; several rows may name the same image. Text may be gzipped."
    )
    root: str = Field(
        description='Folder or archive of the images, absolute or relative to the table: "." is '
        'its own folder. "" where rows hold addresses or the images themselves.'
    )
    image: str = Field(
        description="Column of the image: a name below root, an http(s) address, or the bytes."
    )
    caption: str = Field(description="Column of the caption: a text or a list of texts.")
    split: str = Field(
        description='Column that says train, validation or test; "" where there is none.'
    )
    test_share: Share = Field(
        description="Share of the images held out as test images where no row says test."
    )


class PairImages(Part):
    """Images with a file of captions beside each, loose or in tar shards (webdataset)."""

    kind: Literal["pairs"] = "pairs"
    module: ClassVar[str] = "pipeline.data.datasets.pairs"
    phrase: ClassVar[str] = "images out of its maker's own folder"
    title: ClassVar[str] = "a folder of captioned images"
    licence: ClassVar[str] = UNKNOWN
    root: str = Field(
        description="Path or fsspec URL of a folder, an archive, or a folder of archives, with "
        "a.txt (a caption per line) or a.json ('caption') beside a.jpg."
    )
    captions: Literal["beside", "none"] = Field(
        description="none: images without captions, which only conversations are about."
    )
    test_share: Share = Field(description="Share of the images held out as test images.")


OneImageSource = DemoImages | FolderImages | TableImages | PairImages | Coco2017Images | LcsImages
SourceName = Annotated[str, Field(pattern=r"^\w[\w-]*$")]


class MixtureImages(Part):
    """Several sources of images side by side, each with a name.

    The name is the column `source`, begins the images' origins, and stands before an image in
    LLaVA's mixtures, such as `coco` in `coco/train2017/000000000009.jpg`.
    """

    kind: Literal["mixture"] = "mixture"
    module: ClassVar[str] = "pipeline.data.datasets.mixture"
    sources: dict[SourceName, Annotated[OneImageSource, Field(discriminator="kind")]] = Field(
        min_length=1, description="Sources by name, each with its own fields."
    )
    limits: dict[SourceName, Positive] = Field(
        description="Training images of a source, at most, by its name; a source that is not "
        "named gives all."
    )

    @model_validator(mode="after")
    def _limits_have_sources(self) -> Self:
        _check_names(self.limits, self.sources)
        return self

    @property
    def phrase(self) -> str:
        """The kinds of images, in one phrase."""
        return " and ".join(dict.fromkeys(each.phrase for each in self.sources.values()))


def has_captions(source: OneImageSource | MixtureImages) -> bool:
    """Return whether some image of a source may have a caption."""
    if isinstance(source, MixtureImages):
        return any(map(has_captions, source.sources.values()))
    return not isinstance(source, PairImages) or source.captions != "none"


class DemoConversations(Part):
    """Conversations about the rendered images, written as LLaVA-Instruct JSON."""

    kind: Literal["demo"] = "demo"


class FileConversations(Part):
    """A LLaVA-Instruct JSON file, local or behind any fsspec URL."""

    kind: Literal["file"] = "file"
    path: str = Field(description="Path or URL of the JSON (or JSON lines) file, gzipped or not.")
    sha256: str | None = Field(description="Expected SHA-256 of the file, or null.")


class HubConversations(Part):
    """A LLaVA-Instruct JSON file in a Hugging Face dataset repository."""

    kind: Literal["hub"] = "hub"
    repository: str = Field(description="Dataset repository, owner/name.")
    filename: str = Field(description="File inside the repository.")
    revision: str = Field(description="Commit or tag; a commit makes the run repeatable.")


class NoConversations(Part):
    """None: images with captions alone, so that finetuning and evaluation are about captions."""

    kind: Literal["none"] = "none"


class MixtureConversations(Part):
    """Several files of conversations, each with a name.

    A file with the name of a source of images is about that source's images first.
    """

    kind: Literal["mixture"] = "mixture"
    sources: dict[
        SourceName,
        Annotated[FileConversations | HubConversations, Field(discriminator="kind")],
    ] = Field(min_length=1, description="Files by name, each with its own fields.")
    limits: dict[SourceName, Positive] = Field(
        description="Conversations of a file, at most, by its name; the first ones are taken."
    )

    @model_validator(mode="after")
    def _limits_have_sources(self) -> Self:
        _check_names(self.limits, self.sources)
        return self


def _check_names(limits: Mapping[str, int], sources: Collection[str]) -> None:
    for name in limits.keys() - set(sources):
        near = get_close_matches(name, sources, n=1, cutoff=0)
        raise ValueError(f"limits: there is no source '{name}'; did you mean '{near[0]}'?")


ImageSource = OneImageSource | MixtureImages
ConversationSource = (
    DemoConversations
    | FileConversations
    | HubConversations
    | MixtureConversations
    | NoConversations
)
