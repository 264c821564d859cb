"""How much memory and time generation takes, in evaluation and in chat; imports no torch.

The formula is derived in docs/training.md and checked there against measured passes, like that of
`pipeline.costs.training`. Memory is that of the longest texts that a recipe allows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from model.encoder_table import encoder_line, is_timm
from model.language_table import LanguageLine
from model.projector_costs import ProjectorCosts, projector_costs
from pipeline.costs.backbone_sizes import language_line, vision_width
from pipeline.costs.training import (
    CAPTION,
    CONVERSATION,
    LOGIT_ROWS,
    Memory,
    most,
)
from pipeline.recipe.backbone_parts import BackbonesChoice, TinyBackbones
from pipeline.recipe.recipe import Recipe

CONDITIONS = 3  # the own image, another one, none
POINTED = 2  # of them, those under which patch importance is measured
SPARE = 16  # positions for which a batch has room beside those of its texts
NEGATIVES = 3  # sets of absent objects, in questions about presence
QUESTION = CONVERSATION[0] - CONVERSATION[1]  # mean tokens of the questions


@dataclass(frozen=True)
class Writing:
    """A use of the finished model, with all that its cost depends on.

    Attributes:
        name: Shown to users.
        language: The language model.
        prefix: Projector and separator, in float32.
        prefix_tokens: Positions of an image, the separator included.
        encoder: Bytes of the encoders where they are in memory too, else 0.
        half: Whether the language model is in bf16.
        rows: Texts generated together, times the beams of each.
        images: Images that have been read and are held for the texts about them.
        prompt: Tokens of the longest prompt.
        new: Tokens generated, at most.
        read: Tokens of the longest text that is only scored by likelihood; 0: none is.
        steps: Forward passes of all generation, each of which adds a token to every row.
        positions: Positions of everything that is read, prompts and likelihoods.
    """

    name: str
    language: LanguageLine
    prefix: ProjectorCosts
    prefix_tokens: int
    encoder: int
    half: bool
    rows: int
    images: int
    prompt: int
    new: int
    read: int
    steps: float
    positions: float

    @property
    def element(self) -> int:
        """Bytes of a number of the language model."""
        return 2 if self.half else 4

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return self.element * self.language.parameters + 4 * self.prefix.parameters + self.encoder

    @property
    def cache(self) -> int:
        """Bytes of the keys and values of full rows."""
        return self.kept(self.rows * (self.prefix_tokens + self.prompt + self.new + SPARE))

    def kept(self, positions: float) -> int:
        """Return the bytes of the keys and values of so many positions."""
        return int(self.element * 2 * self.language.layers * self.language.keys * positions)


def writings(recipe: Recipe) -> Iterator[Writing]:
    """Yield evaluation and chat as the recipe has them.

    Raises:
        PipelineError: The dimensions of the recipe's language model are not known.
    """
    evaluate, language = recipe.evaluate, language_line(recipe.backbones)
    patches = recipe.features.patches
    width = vision_width(recipe)
    evaluated = Writing(
        name="evaluate",
        language=language,
        prefix=projector_costs(recipe.pretrain.projector, width, patches, language.width),
        prefix_tokens=recipe.pretrain.projector.tokens_out(patches) + 1,
        encoder=0,
        half=recipe.finetune.precision == "bf16",
        rows=evaluate.batch * evaluate.beams,
        images=evaluate.batch,
        prompt=recipe.examples.max_tokens,
        new=evaluate.max_new_tokens,
        read=recipe.examples.max_tokens,
        steps=0,
        positions=0,
    )
    captions, questions = min(evaluate.images, recipe.images.test_limit), evaluate.questions
    # Two conditions show the same images; without one, all captions are one. One model draws.
    texts = (captions + 1) * (2 + evaluate.caption_samples) + CONDITIONS * questions
    positions = _positions(recipe, evaluated.prefix_tokens, captions, questions)
    # Every patch is hidden once, and the complete image is shown once.
    looked = POINTED * min(captions, evaluate.pointing_images) * (patches + 1)
    yield replace(
        evaluated,
        steps=math.ceil(texts / evaluate.batch) * evaluate.max_new_tokens,
        positions=positions + looked * (evaluated.prefix_tokens + CAPTION[0]),
    )
    yield replace(
        evaluated,
        name="chat",
        encoder=_encoder_bytes(recipe.backbones),
        rows=evaluate.beams,
        images=0,
        # A conversation may fill the model's context.
        prompt=language.positions - evaluated.prefix_tokens - evaluate.max_new_tokens,
        read=0,
    )


def _positions(recipe: Recipe, prefix: int, captions: int, questions: int) -> float:
    """Return the mean positions that both models read, each image once for all conditions."""
    evaluate = recipe.evaluate
    asked_images = min(captions, evaluate.likelihood_images)
    asked = evaluate.presence_objects * (1 + NEGATIVES)
    # For the texts that are written, and again for those that are scored.
    images = 2 * (2 * captions + questions) * prefix
    written = 2 * captions + CONDITIONS * questions * (1 + QUESTION)
    likelihoods = 2 * captions * CAPTION[0] + questions * CONVERSATION[0]
    choices = 2 * asked_images * (prefix + evaluate.choices * CAPTION[0])
    presence = asked_images * (prefix + asked * QUESTION)
    # Under `blind` all images are the same one, and no choice is computed.
    return images + written + CONDITIONS * (likelihoods + presence) + (CONDITIONS - 1) * choices


def _encoder_bytes(backbones: BackbonesChoice) -> int:
    """Return the bytes of all encoders' layers and patch matrices, in float32."""
    if isinstance(backbones, TinyBackbones):
        tiny = backbones
        return _tower_bytes(tiny.clip_width, tiny.clip_layers, tiny.patch_size)
    total = 0
    for encoder in backbones.encoders:
        if is_timm(encoder.name):
            from model.timm_encoder import timm_shape

            total += 4 * timm_shape(encoder.name, -1).parameters
        else:
            line = encoder_line(encoder.name)
            total += _tower_bytes(line.width, line.layers, line.patch)
    return total


def _tower_bytes(width: int, layers: int, patch: int) -> int:
    return 4 * (12 * layers * width**2 + 3 * patch**2 * width)


def writing_memory(writing: Writing) -> Memory:
    """Return the peak memory: while texts are generated, or while they are only scored."""
    language, element = writing.language, writing.element
    width, inner = language.width, language.inner
    # Of the layer being computed: GELU's parts, and the tensors beside the MLP.
    inside = element * ((2 if language.fused_gelu else 4) * inner + 5 * width)
    length = writing.prefix_tokens + writing.prompt
    # The last token: one layer's keys grow, and the token is chosen from logits in float32, which
    # are a copy of those in bf16.
    last = writing.cache // (2 * language.layers)
    last += (4 + 2 * writing.half) * language.vocabulary * writing.rows
    # The prompt, while the cache has no new token yet; with a mask, as prompts are padded.
    prompt = writing.rows * length * (inside + length)
    prompt -= writing.cache - writing.kept(writing.rows * length)
    reading = 0
    if writing.read:
        texts = writing.rows * writing.read
        layer = texts * inside
        logits = 8 * language.vocabulary * min(texts, LOGIT_ROWS)  # and their softmax
        # Beside their own keys and values, which are fewer than those of full rows.
        read = writing.rows * (writing.prefix_tokens + writing.read)
        reading = max(layer + writing.kept(read), logits) - writing.cache
    return Memory(
        weights=writing.weights,
        gradients=0,
        optimizer=0,
        activations=writing.cache + writing.kept(writing.images * writing.prefix_tokens),
        transient=max(last, prompt, reading),
    )


def step_seconds(writing: Writing, peak: float, bandwidth: float, share: float) -> float:
    """Return the seconds of a step, which adds a token to every row.

    It reads all weights and on average half of the full cache, and is mostly bound by that; with
    many rows it is bound by the products.

    Args:
        writing: What is generated.
        peak: Operations per second of the device.
        bandwidth: Bytes per second of its memory.
        share: Share of either that is assumed to be reached.
    """
    language = writing.language
    moved = writing.element * (language.layer_matrices + language.head) + writing.cache / 2
    products = 2 * writing.rows * (language.layer_matrices + language.head)
    return max(moved / bandwidth, products / peak) / share


def all_seconds(writing: Writing, peak: float, bandwidth: float, share: float) -> float:
    """Return the seconds of all generation, each text at full length, and of all scoring."""
    read = 2 * writing.language.layer_matrices * writing.positions / peak / share
    return writing.steps * step_seconds(writing, peak, bandwidth, share) + read


def most_rows(writing: Writing, available: float) -> int:
    """Return how many texts can be generated together in so many bytes; 0 if none fits."""
    return most(lambda rows: writing_memory(replace(writing, rows=rows)).total <= available)
