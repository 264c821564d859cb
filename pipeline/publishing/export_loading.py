"""What the card of an exported repository says about loading it: three ways, each tested as it is.

transformers' own LLaVA class is another format (`export_llava`), because it cannot hold every
model: its output layer has no bias, Phi's has one. A two-layer projector needs no class of
phivision at all, so the card spells it out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.publishing.templates import TEMPLATES

UNKNOWN = "OWNER/NAME"

_TEXT = """\
## Load it

With phivision's package `model` (it reads safetensors and JSON, and runs no code of this
repository); `pip install .` in a checkout of phivision brings what is needed:

```python
from model.assistant import load_assistant

assistant = load_assistant("hf://{{ name }}")  # or a local folder
print(assistant.ask(open("photo.jpg", "rb").read(), "What is in the image?"))
```

The language model alone is a plain one of transformers, without remote code
(`pip install {{ packages }}`):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

language_model = AutoModelForCausalLM.from_pretrained("{{ name }}", subfolder="lm")
tokenizer = AutoTokenizer.from_pretrained("{{ name }}", subfolder="lm")
```

It sees an image through `inputs_embeds`: projected patches, the separator, then the text.
{% if beside %}

`lm/` is the language model before finetuning. Its adapters are in `adapter/`, in peft's format:
`PeftModel.from_pretrained(language_model, "{{ name }}", subfolder="adapter")`.
{% endif %}
{% if plain %}

So this asks the same question without phivision:

```python
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from open_clip import create_model_and_transforms
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import gelu, linear

folder = Path(snapshot_download("{{ name }}"))  # or a local folder
card = json.loads((folder / "bundle.json").read_text())
template = card["template"]
prefix = load_file(folder / "vision_prefix.safetensors")
clip, _, prepare = create_model_and_transforms(f"local-dir:{folder / 'clip'}")
clip.eval()

pixels = prepare(Image.open("photo.jpg").convert("RGB")).unsqueeze(0)
prefix_of = template.get("opening", "") + template["user_prefix"]
question = prefix_of + "What is in the image?" + template["assistant_prefix"]
ids = tokenizer(question, return_tensors="pt").input_ids
with torch.no_grad():
    seen = clip.visual.forward_intermediates(
        pixels,
        indices=[len(clip.visual.transformer.resblocks) + card["layer"]],
        normalize_intermediates=False,
        output_fmt="NLC",
    )
    tokens = seen["image_intermediates"][0].half().float()  # as in training
    tokens = (tokens - prefix["patch_mean"]) / prefix["patch_scale"]
    tokens = linear(tokens, prefix["projector.linear_1.weight"], prefix["projector.linear_1.bias"])
    tokens = gelu(tokens)
    tokens = linear(tokens, prefix["projector.linear_2.weight"], prefix["projector.linear_2.bias"])
    separator = prefix["separator"].view(1, 1, -1)
    words = language_model.get_input_embeddings()(ids)
    seen = torch.cat([tokens, separator], dim=1).to(words.dtype)
    answer = language_model.generate(
        inputs_embeds=torch.cat([seen, words], dim=1),
        max_new_tokens=card["max_new_tokens"],
        num_beams=card["beams"],
        eos_token_id=template["eos_id"],
        pad_token_id=template["eos_id"],
    )
print(tokenizer.decode(answer[0], skip_special_tokens=True).strip())
```
{% endif %}
"""


@dataclass(frozen=True)
class Loading:
    """What is to be loaded.

    Attributes:
        name: owner/name of the repository on the hub, None where it is not known yet.
        projector: Kind of the projector.
        by_open_clip: Whether open_clip builds the encoder, and not timm, and it is the only one.
        beside: Whether LoRA adapters are kept beside the language model, not merged.
    """

    name: str | None
    projector: str
    by_open_clip: bool
    beside: bool

    def text(self, packages: Mapping[str, str]) -> str:
        """Return the section, as Markdown."""
        name = self.name or UNKNOWN
        needed = ["torch", "transformers", "tokenizers"]
        needed += ["peft"] if self.beside else []
        is_plain = self.projector == "mlp2x_gelu" and self.by_open_clip and not self.beside
        needed += ["open_clip_torch"] if is_plain else []
        return TEMPLATES.from_string(_TEXT).render(
            name=name,
            packages=" ".join(pinned(each, packages) for each in needed),
            beside=self.beside,
            plain=is_plain,
        )


def pinned(package: str, packages: Mapping[str, str]) -> str:
    """Return what pip is to install: a package, in the version that was used if known."""
    return f"{package}=={packages[package]}" if package in packages else package
