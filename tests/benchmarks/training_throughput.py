"""How fast pretraining is, beside transformers' LLaVA in a plain loop, and what each measure gives.

Run it from the repository root: `python tests/benchmarks/training_throughput.py`. Both sides train
LLaVA's projector before a frozen Phi of the demo's size, with AdamW and clipping, on the very same
captions of rendered images, five for each, in as many steps. The plain side is in
`tests/support/plain_training.py`; its pixels are ready in memory. Ours reads patch embeddings from
the feature shards. Every measure is also switched on alone, in our model with all of them off, and
off alone. Weights are random, which costs the same. Goal: at least 3 times the samples/s.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PhiForCausalLM

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.batch import Batch
from model.encoder import PatchEncoder
from model.projectors import Mlp2xGeluConfig
from model.shared_rows import predictors
from model.training import MicroBatch
from model.vlm import VisionLanguageModel, build_vlm, freeze
from pipeline.data.stored_images import open_patches, read_images
from pipeline.engine.dag import DAG
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from pipeline.training.batches import TrainingBatches
from pipeline.training.example_sets import ExampleSet
from storage.store.artifacts import ArtifactStore
from storage.tables import read_table, where
from tests.benchmarks.helpers.spread import ratio
from tests.support.fake_stages import make
from tests.support.plain_training import PlainLlava, TinySizes, clip_tower

PER_IMAGE = 5


@dataclass(frozen=True)
class Measures:
    """What makes our step cheaper; with all off, it is the plain step in our model."""

    cached_features: bool
    target_logits: bool
    shared_prefix: bool
    bucketing: bool


ALL, NONE = Measures(True, True, True, True), Measures(False, False, False, False)


class Data:
    """Rendered images with their captions, as both sides take them."""

    def __init__(self, folder: Path, images: int) -> None:
        recipe = preset("demo").override(
            {"images.source.train": images, "images.source.test": 4, "backbones.clip_epochs": 1}
        )
        store = ArtifactStore(str(folder), folder / "cache", 2**30)
        settings = Settings(store=str(folder), device="cpu", threads=1, wandb="disabled")
        made = make(store, settings, recipe, stages=DAG[:5])
        inputs = {name: store.artifact(outcome.manifest) for name, outcome in made.items()}
        patches = open_patches(inputs["features"])
        self.all, self.each = (
            ExampleSet(inputs["examples"], patches, "train", {"caption": 1.0}, 0, count)
            for count in (PER_IMAGE, 1)
        )
        table = where(read_table(inputs["examples"].path("examples.parquet")), kind="caption")
        self.captions = dict(
            zip(table["example_id"].to_pylist(), table["input_ids"].to_pylist(), strict=True)
        )
        keys = dict(zip(table["example_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
        encoder = PatchEncoder(inputs["backbones"].directory("clip"), -1, "cpu")
        found = dict(read_images(inputs["images"], set(keys.values())))
        number = {key: place for place, key in enumerate(found)}
        self.pixels = torch.stack([encoder.prepare(image) for image in found.values()])
        self.image_of = {example: number[key] for example, key in keys.items()}

    def take(self, steps: int, images: int) -> None:
        """Keep just what so many steps of so many images need; all ways then train on the same.

        Args:
            steps: Optimizer steps.
            images: Images of a step.
        """
        whole = [n for n, row in enumerate(self.all.rows) if len(row) == PER_IMAGE]
        kept = np.array(whole[: steps * images])
        if len(kept) < steps * images:
            sys.exit(f"{len(kept)} images are too few for {steps} steps of {images}")
        self.step_count, self.images = steps, images
        self.shared = part_of(self.all, kept)
        examples = np.concatenate(self.shared.rows)
        places = {int(row[0]): place for place, row in enumerate(self.each.rows)}
        self.single = part_of(self.each, np.array([places[int(e)] for e in examples]))

    def pixels_of(self, examples: Sequence[int]) -> Tensor:
        """The image of each example [example, 3, side, side]."""
        return self.pixels[[self.image_of[example] for example in examples]]

    def unused_token(self) -> int:
        used = {token for caption in self.captions.values() for token in caption}
        return next(token for token in range(len(used) + 1) if token not in used)

    def steps(self, count: int, *, shared: bool, bucketing: bool) -> Iterator[MicroBatch]:
        """Batches of the first `count` optimizer steps."""
        examples = self.shared if shared else self.single
        size = self.images if shared else self.images * PER_IMAGE
        if bucketing:
            feed = TrainingBatches(
                examples, batch=size, micro_batch=size, seed=0, rank=0, processes=1
            )
            yield from (feed.step(step)[0] for step in range(count))
            return
        order = np.random.default_rng(0).permutation(len(examples.rows))
        for step in range(count):
            chosen = order[step * size : (step + 1) * size]
            yield examples.micro_batch(chosen, int(examples.targets[chosen].sum()))


def part_of(examples: ExampleSet, rows: np.ndarray) -> ExampleSet:
    """The same examples with some of the rows."""
    part = copy.copy(examples)
    part.rows = [examples.rows[row] for row in rows]
    part.lengths, part.targets = examples.lengths[rows], examples.targets[rows]
    return part


class Ours:
    """Our step, with any of its measures switched off."""

    def __init__(self, data: Data, sizes: TinySizes, measures: Measures) -> None:
        self.data, self.measures = data, measures
        lm = PhiForCausalLM(sizes.phi())
        self.vlm = build_vlm(Mlp2xGeluConfig(), sizes.vision, sizes.patches, lm)
        freeze(self.vlm.language_model)
        self.tower = clip_tower(sizes)
        self.step = Step(self.vlm.vision_prefix)

    def __call__(self, steps: int) -> int:
        """Train some steps and return how many captions they had."""
        measures, captions = self.measures, 0
        found = self.data.steps(steps, shared=measures.shared_prefix, bucketing=measures.bucketing)
        for micro in found:
            batch = micro.batch if measures.cached_features else self._encoded(micro)
            nll = vlm_nll(self.vlm, batch) if measures.target_logits else full_nll(self.vlm, batch)
            self.step(nll.sum() / micro.tokens)
            captions += len(micro.example_ids)
        return captions

    @torch.no_grad()
    def _encoded(self, micro: MicroBatch) -> Batch:
        """The batch with patches that CLIP makes of the pixels now."""
        segments = micro.batch.segments
        counts = (
            [1] * len(micro.example_ids)
            if segments is None
            else (segments.where(micro.batch.attention, 0).amax(dim=1) + 1).tolist()
        )
        first = np.cumsum(counts) - counts
        pixels = self.data.pixels_of([micro.example_ids[place] for place in first])
        states = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        return replace(micro.batch, patches=states[:, 1:])


class Plain:
    """transformers' LLaVA in a plain loop."""

    def __init__(self, data: Data, sizes: TinySizes) -> None:
        self.data = data
        self.side = PlainLlava(sizes, data.unused_token())
        self.step = Step(self.side.projector)

    def __call__(self, steps: int) -> int:
        """Train some steps and return how many captions they had."""
        single, size = self.data.single, self.data.images * PER_IMAGE
        order = np.random.default_rng(0).permutation(np.concatenate(single.rows))
        for step in range(steps):
            chosen = single.example_ids[order[step * size : (step + 1) * size]].tolist()
            captions = [self.data.captions[example] for example in chosen]
            self.step(self.side.loss(self.data.pixels_of(chosen), captions))
        return steps * size


class Step:
    """Backward pass, clipping and AdamW, the same on both sides."""

    def __init__(self, trained: nn.Module) -> None:
        self.weights = list(trained.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-3, fused=True)

    def __call__(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def vlm_nll(vlm: VisionLanguageModel, batch: Batch) -> Tensor:
    """Our own loss per target: logits at supervised positions only."""
    found = vlm.supervised_states(batch)
    return vlm.nll(found.states, found.targets)


def full_nll(vlm: VisionLanguageModel, batch: Batch) -> Tensor:
    """The same loss per target, taken out of the logits of all positions."""
    prefix = vlm.embed_images(batch.patches).tokens
    joint = torch.cat([prefix, vlm.embed_text(batch.input_ids[:, :-1])], dim=1)
    rows, tokens = batch.supervised.nonzero(as_tuple=True)
    if batch.segments is None:
        hidden, places = vlm.hidden(joint), tokens
    else:
        hidden = vlm.hidden_in_segments(joint, batch.segments[:, :-1], batch.attention[:, :-1])
        places = predictors(batch.segments)[rows, tokens]
    likelihood = vlm.logits(hidden).log_softmax(dim=-1)
    return -likelihood[rows, prefix.shape[1] - 1 + places, batch.input_ids[batch.supervised]]


def ways(data: Data, sizes: TinySizes) -> dict[str, Callable[[int], int]]:
    """Everything that is timed, by name."""
    found: dict[str, Callable[[int], int]] = {"transformers' LLaVA": Plain(data, sizes)}
    found["ours, all off"] = Ours(data, sizes, NONE)
    for field in fields(Measures):
        name = field.name.replace("_", " ")
        found[f"  only {name}"] = Ours(data, sizes, replace(NONE, **{field.name: True}))
        found[f"  without {name}"] = Ours(data, sizes, replace(ALL, **{field.name: False}))
    found["ours"] = Ours(data, sizes, ALL)
    return dict(sorted(found.items(), key=lambda item: item[0].startswith("  without")))


def compare(data: Data, words: int, repeats: int) -> None:
    """Time all ways in turn and print what came of it."""
    torch.manual_seed(0)
    sides = ways(data, TinySizes(words))
    took: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        # In another order each time: who follows a way of large logits finds memory in pieces.
        for name in Random(repeat).sample(sorted(sides), len(sides)):
            began = time.process_time()  # of this process, so that other load does not count
            captions = sides[name](data.step_count if repeat else 1)
            took[name] += [(time.process_time() - began) / captions] if repeat else []
    size = data.images * PER_IMAGE
    print(f"\n{words} words, {data.step_count} steps of {size} captions, {repeats} repeats")
    plain, ours = took["transformers' LLaVA"], took["ours"]
    for name, seconds in took.items():
        speed = 1 / statistics.median(seconds)
        print(
            f"{name:<27} {speed:7.1f} samples/s  {ratio(plain, seconds):20} x plain  "
            f"ours is {ratio(seconds, ours):20} x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--words", type=int, nargs="+", default=[512, 51_200])
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(folder), given.images)
        for words in given.words:
            # With 51,200 words a caption takes more than ten times as long.
            data.take(given.steps, 8 if words < 10_000 else 2)
            check(data)
            compare(data, words, given.repeats)


def check(data: Data) -> None:
    """Refuse to time two losses that differ."""
    ours = Ours(data, TinySizes(512), ALL)
    for shared in (True, False):
        (micro,) = data.steps(1, shared=shared, bucketing=False)
        pairs = (vlm_nll(ours.vlm, micro.batch), full_nll(ours.vlm, micro.batch))
        torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main()
