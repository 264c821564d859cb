"""Which piece hides the image: a plain captioning loop on photographs, made ours piece by piece.

`python tests/benchmarks/plain_photos.py FOLDER` trains a small network before a frozen SmolLM2, as
ClipCap does (Mokady et al. 2021, arXiv 2111.09734), and says how likely held-out captions are with
their own photograph and with another one: the gap is what the loop has seen. Each option replaces
one piece by that of the product, so that two runs that differ in one option judge that piece;
`--ours` is the product's pretraining. docs/photograph_trials.md has what came out.

FOLDER is what `python -m deployments.photo_weights FOLDER` leaves; the photographs lie in COCO's
layout where PHIVISION_PHOTOS says. Features and the unpacked language model are kept in FOLDER.
"""

import argparse
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from model.batch import Batch
from model.blocks import Projection
from model.encoder import PatchEncoder
from model.gguf_model import write_gguf_model
from model.language import load_language_model
from model.projectors import LinearConfig, MixtureConfig, Mlp2xGeluConfig
from model.training_schedule import warmup_cosine
from model.vision_prefix import VisionPrefix
from model.vlm import VisionLanguageModel, embedding_scale, freeze
from pipeline.training.collate import collate

EOS, CHOICES = 2, 8
OURS = (
    "--features centred --projector mixture --captions 5 --cosine --beta2 0.98 --clip 1 --decay 0 "
    "--autocast"
)


class PlainPrefix(nn.Module):
    """Grid averaged, Linear, GELU, Linear, brought to the words' scale; a learned separator.

    `scaling` is how: `multiplied` by one number, `calibrated` to the words' root mean square by
    one number, or `normed` position by position.
    """

    def __init__(self, vision: int, width: int, scale: float, side: int, scaling: str) -> None:
        super().__init__()
        self.side, self.scaling, self.scale = side, scaling, scale
        self.up, self.down = nn.Linear(vision, 1024), nn.Linear(1024, width)
        self.separator = nn.Parameter(torch.randn(width) * scale)
        self.register_buffer("factor", torch.tensor(scale))

    @torch.no_grad()
    def calibrate(self, patches: Tensor) -> None:
        """Divide by what the root mean square is with these features."""
        self.factor.div_(self._projected(patches).square().mean().sqrt())

    def _projected(self, patches: Tensor) -> Tensor:
        if patches.shape[1] != self.side**2:
            grid = patches.transpose(1, 2).unflatten(2, (math.isqrt(patches.shape[1]), -1))
            patches = functional.adaptive_avg_pool2d(grid, self.side).flatten(2).transpose(1, 2)
        return self.down(functional.gelu(self.up(patches)))

    def forward(self, patches: Tensor) -> Projection:
        """Tokens and separator [batch, token + 1, language]."""
        tokens = self._projected(patches)
        if self.scaling == "normed":
            tokens = functional.rms_norm(tokens, tokens.shape[-1:])
        separator = self.separator.expand(len(tokens), 1, -1)
        joint = torch.cat([tokens * self.factor, separator], dim=1)
        return Projection(joint, torch.zeros(()), torch.zeros(0))


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--name", default="plain")
    add("--ours", action="store_true", help=f"the same as {OURS}")
    add("--steps", type=int, default=157)
    add("--rows", type=int, default=16, help="images of a step")
    add("--captions", type=int, default=1, help="captions that share an image's row")
    add("--words", type=int, help="tokens of a caption, at most")
    add("--features", choices=["rms", "centred", "standardised"], default="rms")
    add("--projector", choices=["plain", "mlp2x_gelu", "linear", "mixture"], default="plain")
    add("--scaling", choices=["multiplied", "calibrated", "normed"], default="multiplied")
    add("--reducer", choices=["none", "pool", "linear"], default="pool")
    add("--tokens", type=int, default=16)
    add("--experts", type=int, default=4)
    add("--layers", type=int, default=2)
    add("--balance", type=float, default=0.01)
    add("--rate", type=float, default=1e-3)
    add("--warmup", type=int, default=50, help="steps")
    add("--cosine", action="store_true", help="fall to zero, else the rate stays")
    add("--beta2", type=float, default=0.999)
    add("--clip", type=float, default=math.inf)
    add("--decay", type=float, default=0.01)
    add("--autocast", action="store_true", help="the prefix's products in bf16")
    add("--choice", type=int, default=0, help="images of the choice of eight")
    add("--test", type=int, default=300, help="held-out images")
    add("--spreads", type=int, default=0, help="steps between looks at the variance of tokens")
    add("--seed", type=int, default=0)
    given = parser.parse_args()
    # What is typed comes last and counts.
    return parser.parse_args([*OURS.split(), *sys.argv[1:]]) if given.ours else given


def load(folder: Path, split: str) -> tuple[Tensor, list[list[str]]]:
    """Features [image, 49, 1280] float32 and captions, out of the cache where it is there."""
    kept, texts = folder / f"features-{split}.safetensors", folder / f"captions-{split}.json"
    if not kept.is_file():
        root = Path(os.environ["PHIVISION_PHOTOS"])
        found = json.loads((root / f"annotations/captions_{split}2017.json").read_text())
        captions: dict[int, list[str]] = {}
        for row in found["annotations"]:
            captions.setdefault(row["image_id"], []).append(row["caption"])
        encoder = PatchEncoder(folder / "tf_efficientnet_lite0", -1)
        files = [root / f"{split}2017" / row["file_name"] for row in found["images"]]
        made = [
            encoder.encode_images(
                [Image.open(path).convert("RGB") for path in files[start : start + 50]]
            ).patches.half()
            for start in range(0, len(files), 50)
        ]
        save_file({"features": torch.cat(made)}, kept)
        texts.write_text(json.dumps([captions[row["id"]] for row in found["images"]]))
    return load_file(kept)["features"].float(), json.loads(texts.read_text())


def prepared(kind: str, *sets: Tensor) -> list[Tensor]:
    """Features divided by their root mean square, or centred first, by what the first set has."""
    first = sets[0]
    if kind == "rms":
        return [each / first.square().mean().sqrt() for each in sets]
    mean = first.mean(dim=(0, 1))
    power = (first - mean).square()
    scale = power.mean().sqrt() if kind == "centred" else power.mean((0, 1)).sqrt()
    return [(each - mean) / scale.clamp_min(1e-6) for each in sets]


def build(options: argparse.Namespace, patches: Tensor, language_model: Any) -> nn.Module:
    """The prefix that the options ask for, matched to these training features."""
    torch.manual_seed(options.seed)
    scale, vision = embedding_scale(language_model), patches.shape[-1]
    width = language_model.config.hidden_size
    if options.projector == "plain":
        prefix = PlainPrefix(vision, width, scale, math.isqrt(options.tokens), options.scaling)
        if options.scaling == "calibrated":
            prefix.calibrate(patches[:256])
        return prefix
    mixture = {name: getattr(options, name) for name in ("reducer", "tokens", "experts", "layers")}
    config = {
        "linear": LinearConfig,
        "mlp2x_gelu": Mlp2xGeluConfig,
        "mixture": lambda: MixtureConfig(balance_weight=options.balance, **mixture),
    }[options.projector]()
    projector = config.build(vision, patches.shape[1], width, scale)
    return VisionPrefix(projector, vision, width, scale)


def spread(values: Tensor) -> float:
    """The variance between images at each position, as a share of all power."""
    values = values.detach().float()
    return ((values - values.mean(0)).square().mean() / values.square().mean()).item()


@torch.no_grad()
def spreads(prefix: nn.Module, patches: Tensor) -> dict[str, float]:
    """How much of what each module of a prefix gives differs between images."""
    found = {"input": spread(patches)}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, output: Any) -> None:
            del module, given
            found[name] = spread(output if isinstance(output, Tensor) else output[0])

        return hook

    inner = getattr(prefix, "projector", prefix)
    hooks = [child.register_forward_hook(note(name)) for name, child in inner.named_children()]
    found["tokens"] = spread(prefix(patches).tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    return {name: round(value, 3) for name, value in found.items()}


Words = list[int]


def rows_of(patches: Tensor, texts: Sequence[Sequence[Words]]) -> Batch:
    """Rows, each an image and the token ids of one or more captions."""
    ids = [np.array(words) for row in texts for words in row]
    every = [np.ones(len(words), np.bool_) for words in ids]
    return collate(patches, ids, every, [len(row) for row in texts])


@torch.no_grad()
def nats_of(vlm: VisionLanguageModel, patches: Tensor, texts: Sequence[Words]) -> Tensor:
    """Nats and tokens of one caption of each image [image, 2]."""
    found = []
    for start in range(0, len(texts), 32):
        batch = rows_of(patches[start : start + 32], [[t] for t in texts[start : start + 32]])
        sums = torch.zeros(len(batch.patches)).index_add_(0, batch.target_rows, vlm(batch))
        found.append(torch.stack([sums, batch.target_rows.bincount().float()], dim=1))
    return torch.cat(found)


def look(
    vlm: VisionLanguageModel, patches: Tensor, texts: Sequence[Words], choice: int
) -> dict[str, float]:
    """Held-out nats per token with the own and another image; the choice of the own of eight."""
    shown = [nats_of(vlm, patches.roll(shift, 0), texts) for shift in (0, 1)]
    real, other = ((each[:, 0].sum() / each[:, 1].sum()).item() for each in shown)
    found = {"real": real, "other": other, "gap": other - real}
    if choice:
        rivals = [each[:choice, 0] for each in shown]
        for shift in range(2, CHOICES):
            rivals.append(nats_of(vlm, patches.roll(shift, 0)[:choice], texts[:choice])[:, 0])
        found["choice"] = (torch.stack(rivals).argmin(0) == 0).float().mean().item()
    return {name: round(value, 4) for name, value in found.items()}


def batches(
    options: argparse.Namespace, patches: Tensor, texts: Sequence[Sequence[Words]]
) -> Iterator[Batch]:
    """One batch for each step, all rows in a new order each time round."""
    per_row = options.captions
    rows = [(i, k) for i, each in enumerate(texts) for k in range(0, len(each), per_row)]
    rng = np.random.default_rng(options.seed)
    rounds = 1 + options.steps * options.rows // len(rows)
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(rounds)])
    for step in range(options.steps):
        chosen = [rows[n] for n in order[step * options.rows : (step + 1) * options.rows]]
        shown = patches[[image for image, _ in chosen]]
        yield rows_of(shown, [texts[image][k : k + per_row] for image, k in chosen])


def train(
    options: argparse.Namespace, vlm: VisionLanguageModel, feed: Iterator[Batch], test: Tensor
) -> None:
    """The loop: AdamW on the prefix, the language model frozen."""
    trained = list(vlm.vision_prefix.parameters())
    optimizer = torch.optim.AdamW(
        trained, lr=options.rate, weight_decay=options.decay, betas=(0.9, options.beta2)
    )
    if options.cosine:
        schedule: Any = warmup_cosine(optimizer, options.steps, options.warmup / options.steps)
    else:
        rise = options.warmup + 1
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1, (n + 1) / rise))
    begun, losses = time.monotonic(), []
    for step, batch in enumerate(feed, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.autocast):
            states = vlm.supervised_states(batch)
            nll = vlm.nll(states.states, states.targets).mean()
        (nll + states.auxiliary_loss).backward()
        nn.utils.clip_grad_norm_(trained, options.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(nll.item())
        if step % (options.spreads or 20) == 0:
            seen = spreads(vlm.vision_prefix, test[:100]) if options.spreads else ""
            seconds = time.monotonic() - begun
            print(f"  step {step}: {np.mean(losses[-10:]):.3f}, {seconds:.0f} s {seen}", flush=True)


def main() -> None:
    """Train once and print what held-out captions say."""
    options = arguments()
    folder = options.folder / "lm"
    if not folder.is_dir():
        (packed,) = options.folder.glob("*.gguf")
        write_gguf_model(packed, folder, packed.name)
    language_model = load_language_model(folder, torch.bfloat16)
    freeze(language_model)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def words(text: str) -> Words:
        return [*tokenizer.encode(text, add_special_tokens=False).ids, EOS][: options.words]

    train_patches, captions = load(options.folder, "train")
    test_patches, references = load(options.folder, "val")
    train_patches, test_patches = prepared(options.features, train_patches, test_patches)
    test_patches = test_patches[: options.test]
    asked = [words(row[0]) for row in references[: options.test]]
    prefix = build(options, train_patches, language_model)
    vlm = VisionLanguageModel(prefix, language_model)  # ty: ignore[invalid-argument-type]
    begin = spreads(prefix, test_patches[:100])
    print(options.name, begin, flush=True)
    texts = [[words(text) for text in row] for row in captions]
    begun = time.monotonic()
    train(options, vlm, batches(options, train_patches, texts), test_patches)
    result = {
        "name": options.name,
        **look(vlm, test_patches, asked, options.choice),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
        "spreads": {"before": begin, "after": spreads(prefix, test_patches[:100])},
        "options": {name: str(value) for name, value in vars(options).items()},
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
