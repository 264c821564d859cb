"""The published assistant for llama.cpp and ollama: two GGUF files, and ollama's Modelfile."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.publishing.export import Lineage
from pipeline.publishing.export_converted import write_converted
from pipeline.publishing.templates import TEMPLATES

MODEL = "model.gguf"
VISION = "mmproj.gguf"
MODELFILE = "Modelfile"

_MODELFILE = '''\
FROM ./{model}
FROM ./{vision}
TEMPLATE """{template}"""
PARAMETER temperature 0
PARAMETER repeat_penalty 1
PARAMETER num_predict {tokens}
'''
_TEXT = """\
## Load it

`model.gguf` is the language model and `mmproj.gguf` encoder and projector, for the LLaVA loader of
llama.cpp (libmtmd); `Modelfile` is for ollama.

```console
$ llama-mtmd-cli -m model.gguf --mmproj mmproj.gguf --jinja --temp 0 \\
    --image photo.png -p "What is in the image?"
$ llama-server -m model.gguf --mmproj mmproj.gguf --jinja
$ ollama create {{ short }} -f Modelfile
```

Give it images of {{ side }} by {{ side }} pixels, prepared as in training. llama.cpp pads others to
a square, which training never did:

```python
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

resize = Resize({{ side }}, InterpolationMode.{{ interpolation }})
as_trained = Compose([resize, CenterCrop({{ side }})])
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
as_trained(photo).save("photo.png")
```

llama.cpp puts CLIP's class token behind the patches and not in front of them, which moves every
patch by one position: [issue 25814](https://github.com/ggml-org/llama.cpp/issues/25814), present
in llama-cpp-python 0.3.36. Until your llama.cpp has the one line of its pull request 25844, it
answers about a shifted image, and the scores above do not apply.
{% if beams > 1 %}

llama.cpp has no beam search, and the scores above were measured with {{ beams }} beams.
{% endif %}

Unlike phivision, llama.cpp takes a control token that people type for one: remove
`<image_separator>`, `<__media__>` and the like from questions of strangers.
"""


@dataclass(frozen=True)
class GgufLoading:
    """How the files are loaded; see `export_loading.Loading`.

    Attributes:
        short: A name for ollama.
        side: Side of the square that the encoder sees, in pixels.
        interpolation: `bicubic` or `bilinear`.
        beams: With how many beams the assistant was evaluated.
    """

    short: str
    side: int
    interpolation: str
    beams: int

    def text(self, packages: Mapping[str, str]) -> str:
        """Return the section, as Markdown."""
        return TEMPLATES.from_string(_TEXT).render(
            short=self.short,
            side=self.side,
            interpolation=self.interpolation.upper(),
            beams=self.beams,
        )


def write_gguf(lineage: Lineage, folder: Path) -> None:
    """Write the published assistant as GGUF files into an empty folder.

    Raises:
        PipelineError: The package `gguf` is missing, or llama.cpp cannot hold the model or its
            tokenizer.
        StorageError: An artifact is damaged or cannot be read.
    """
    if find_spec("gguf") is None:
        raise PipelineError("the package gguf is missing", "pip install 'phivision[gguf]'")
    write_converted(lineage, folder, "gguf", _convert)


def _convert(bundle: Path, folder: Path) -> GgufLoading:
    """Write the three files; return how they are loaded."""
    from safetensors.torch import load_file  # torch and transformers take seconds

    from model.gguf_language import write_language_gguf
    from model.gguf_template import go_template, jinja_template
    from model.gguf_tokenizer import read_vocabulary
    from model.gguf_vision import write_vision_gguf
    from model.prompt import PromptTemplate

    card = json.loads((bundle / "bundle.json").read_text())
    template = PromptTemplate.load(bundle / "lm", **card["template"])
    vocabulary = read_vocabulary(bundle / "lm", template.eos_id, jinja_template(template))
    separator = load_file(bundle / "vision_prefix.safetensors")["separator"]
    write_language_gguf(bundle / "lm", folder / MODEL, vocabulary, separator, card["name"])
    write_vision_gguf(bundle, folder / VISION, card)
    modelfile = _MODELFILE.format(
        model=MODEL,
        vision=VISION,
        template=go_template(template),
        tokens=card["max_new_tokens"],
    )
    (folder / MODELFILE).write_text(modelfile, encoding="utf-8")
    clip = json.loads((bundle / "clip" / "open_clip_config.json").read_text())
    return GgufLoading(
        "".join(c if c.isalnum() or c in "-_." else "-" for c in card["name"].lower()),
        clip["model_cfg"]["vision_cfg"]["image_size"],
        clip.get("preprocess_cfg", {}).get("interpolation", "bicubic"),
        card["beams"],
    )
