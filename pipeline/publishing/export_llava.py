"""The published assistant as a LLaVA of transformers: a folder that needs no code of phivision."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.publishing.export import Lineage
from pipeline.publishing.export_converted import write_converted
from pipeline.publishing.export_loading import UNKNOWN, pinned
from pipeline.publishing.templates import TEMPLATES

_TEXT = """\
## Load it

This is transformers' `LlavaForConditionalGeneration` with its processor and chat template
(`pip install {{ packages }}`):

```python
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{{ name }}")
processor = AutoProcessor.from_pretrained("{{ name }}")
# Resized and cropped as in training; the processor alone crops a quarter of photographs one
# pixel off.
resize = Resize({{ side }}, InterpolationMode.{{ interpolation }})
as_trained = Compose([resize, CenterCrop({{ side }})])

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
shown = {"type": "image", "image": as_trained(photo)}
asked = {"type": "text", "text": "What is in the image?"}
inputs = processor.apply_chat_template(
    [{"role": "user", "content": [shown, asked]}],
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True).strip())
```

It computes in float32 unless `dtype` says otherwise. Unlike phivision, transformers takes a control
token that people type for one: remove `<image>` and the like from questions of strangers.
"""


@dataclass(frozen=True)
class LlavaLoading:
    """How a LLaVA is loaded; see `export_loading.Loading`.

    Attributes:
        name: owner/name of the repository on the hub, None where it is not known yet.
        side: Side of the square that the encoder sees, in pixels.
        interpolation: `bicubic` or `bilinear`.
    """

    name: str | None
    side: int
    interpolation: str

    def text(self, packages: Mapping[str, str]) -> str:
        """Return the section, as Markdown."""
        needed = ("torch", "torchvision", "transformers", "tokenizers")
        return TEMPLATES.from_string(_TEXT).render(
            name=self.name or UNKNOWN,
            side=self.side,
            interpolation=self.interpolation.upper(),
            packages=" ".join(pinned(each, packages) for each in needed),
        )


def write_llava(lineage: Lineage, folder: Path, name: str | None = None) -> None:
    """Write the published assistant as a LLaVA into an empty folder.

    Raises:
        PipelineError: LLaVA's class cannot hold the model, or its tokenizer does not fit.
        StorageError: An artifact is damaged or cannot be read.
    """
    write_converted(lineage, folder, "llava", partial(_convert, name=name))


def _convert(bundle: Path, folder: Path, *, name: str | None) -> LlavaLoading:
    """Write model and processor; return how they are loaded."""
    from model.llava import build_llava  # torch and transformers take seconds
    from model.llava_processor import build_processor, check_ids
    from model.prompt import PromptTemplate

    card = json.loads((bundle / "bundle.json").read_text())
    template = PromptTemplate.load(bundle / "lm", **card["template"])
    processor, tokens = build_processor(bundle, template)
    check_ids(processor, tokens, template)
    build_llava(bundle, card, tokens).save_pretrained(folder)
    processor.save_pretrained(folder)
    clip = json.loads((bundle / "clip" / "open_clip_config.json").read_text())
    return LlavaLoading(
        name,
        clip["model_cfg"]["vision_cfg"]["image_size"],
        clip.get("preprocess_cfg", {}).get("interpolation", "bicubic"),
    )
