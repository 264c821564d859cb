"""How much memory and time a training takes on a GPU, from the recipe alone; imports no torch.

`pipeline.costs.generation` does the same for evaluation and chat.

The formula is derived in docs/training.md and checked there against measured steps. Memory is that
of the longest batch that a recipe allows, time that of the mean one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from model.flops import Size, Weights, passes_before, training_flops
from model.language_table import LanguageLine
from model.projector_costs import ProjectorCosts, projector_costs
from pipeline.costs.backbone_sizes import language_line, vision_width
from pipeline.recipe.parts import FinetunePart, PretrainPart
from pipeline.recipe.recipe import Recipe

Method = Literal["frozen", "lora", "full"]

# Bytes of a weight in NF4: 4 bits, and for each 64 of them a scale of 8 bits, 256 of which share
# one of 32 bits.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# Bytes of both moments in 8 bits: each has a scale of 32 bits for 256 numbers.
MOMENTS_8BIT = 2 * (1 + 4 / 256)
# Texts about an image of COCO: captions, and conversations (157,712 about 118,287 images).
CAPTIONS, CONVERSATIONS = 5, 4 / 3
# Rows of logits held at once, behind a frozen output layer and behind one that is trained; a test
# compares them with the model.
FROZEN_ROWS, LOGIT_ROWS = 128, 1024
CHARACTERS = 4  # of a token, at least: gives the tokens of the longest caption
# Mean text tokens and supervised ones. COCO's captions have about 52 characters, nine verbatim
# records of LLaVA-Instruct-150K about 620, of which 540 are answers; 4.3 make a token of Phi-2.
CAPTION, CONVERSATION = (13.0, 13.0), (160.0, 125.0)


@dataclass(frozen=True)
class Text:
    """What the rows of a training hold.

    Attributes:
        longest: Text tokens of the longest row that the recipe allows.
        mean: Text tokens of the mean row.
        targets: Supervised tokens of the mean row.
    """

    longest: int
    mean: float
    targets: float


@dataclass(frozen=True)
class Training:
    """A training, with all that its cost depends on.

    Attributes:
        name: Shown to users.
        language: The language model.
        prefix: Projector and separator.
        prefix_tokens: Positions of an image, the separator included.
        text: What its rows hold.
        method: Which part of the language model is trained.
        rank: Rank of the adapters.
        targets: Linear layers that have adapters.
        packed: Whether the layers below adapters are stored in NF4.
        half: Whether products are in bf16.
        moments_8bit: Whether AdamW's moments take 8 bits.
        checkpointing: Whether activations are recomputed in the backward pass.
        masked: Whether attention is given a mask, as rows of several examples need.
        passes: Forward passes without gradient before the trained one.
        batch: Rows of an optimizer step.
        micro_batch: Rows of a forward pass.
        rows: Rows of the whole training, all epochs together.
    """

    name: str
    language: LanguageLine
    prefix: ProjectorCosts
    prefix_tokens: int
    text: Text
    method: Method
    rank: int
    targets: tuple[str, ...]
    packed: bool
    half: bool
    moments_8bit: bool
    checkpointing: bool
    masked: bool
    passes: float
    batch: int
    micro_batch: int
    rows: float

    @property
    def adapters(self) -> int:
        """Parameters of the adapters."""
        return self.language.adapters(self.targets, self.rank) if self.method == "lora" else 0

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        whole = self.language.parameters if self.method == "full" else 0
        return self.prefix.parameters + self.adapters + whole

    @property
    def size(self) -> Size:
        """What the number of operations of a step depends on."""
        language = self.language
        layers = Weights(language.layer_matrices, self.adapters)
        head = Weights(language.head, 0)
        if self.method == "full":
            layers, head = Weights(0, language.layer_matrices), Weights(0, language.head)
        return Size(
            prefix=Weights(0, self.prefix.matrices - self.prefix.idle),
            layers=layers,
            head=head,
            attention=language.layers * language.queries,
            prefix_tokens=self.prefix_tokens,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak of a step.

    Attributes:
        weights: Weights, with the bf16 copies of trained ones that products use.
        gradients: Gradients, in float32.
        optimizer: Both moments of AdamW, in float32 or 8 bits.
        activations: What the forward pass keeps for the backward pass.
        transient: Logits of a chunk, or the current layer of the backward pass; the larger.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    transient: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(vars(self).values())


def trainings(recipe: Recipe) -> Iterator[Training]:
    """Yield pretraining and both methods of finetuning as the recipe has them.

    Raises:
        PipelineError: The dimensions of the recipe's language model are not known.
    """
    pretrain, finetune = recipe.pretrain, recipe.finetune
    language = language_line(recipe.backbones)
    patches = recipe.features.patches
    width = vision_width(recipe)
    prefix = projector_costs(pretrain.projector, width, patches, language.width)
    prefix_tokens = pretrain.projector.tokens_out(patches) + 1
    image_count = recipe.images.limit * (1 - recipe.images.validation_share)
    captions = image_count * math.ceil(CAPTIONS / pretrain.examples_per_row)
    spoken = _texts(finetune.caption_share) * CONVERSATIONS / finetune.examples_per_row
    conversations = image_count * max(1.0, spoken)

    def made(
        name: str, part: PretrainPart | FinetunePart, text: Text, method: Method, rows: float
    ) -> Training:
        return Training(
            name=name,
            language=language,
            prefix=prefix,
            prefix_tokens=prefix_tokens,
            text=text,
            method=method,
            rank=finetune.lora_rank,
            targets=language.named(finetune.lora_targets),
            packed=False,
            half=part.precision == "bf16",
            moments_8bit=part.optimizer == "adamw_8bit",
            checkpointing=part.gradient_checkpointing,
            masked=part.examples_per_row > 1,
            passes=passes_before(part.objective),
            batch=part.batch,
            micro_batch=part.micro_batch,
            rows=part.epochs * rows,
        )

    text = _conversations(recipe)
    yield made("pretrain", pretrain, _captions(recipe), "frozen", captions)
    lora = made("finetune LoRA", finetune, text, "lora", conversations)
    yield from (lora, replace(lora, name="finetune QLoRA", packed=True))
    yield made("finetune full", finetune, text, "full", conversations)


def _captions(recipe: Recipe) -> Text:
    examples, count = recipe.examples, recipe.pretrain.examples_per_row
    longest = min(examples.max_tokens, examples.caption_max_characters // CHARACTERS + 1)
    return Text(count * longest, count * CAPTION[0], count * CAPTION[1])


def _conversations(recipe: Recipe) -> Text:
    limit, part = recipe.examples.max_tokens, recipe.finetune
    spoken = min(1.0, limit / CONVERSATION[0])
    captions, count = part.caption_share, part.examples_per_row
    mean, targets = (
        count * (captions * caption + (1 - captions) * spoken * conversation)
        for caption, conversation in zip(CAPTION, CONVERSATION, strict=True)
    )
    return Text(count * limit, mean, targets)


def _texts(captions: float) -> float:
    """Return how many texts there are per conversation if this share of all are captions."""
    return 1 / (1 - captions) if captions < 1 else CAPTIONS / CONVERSATIONS


def memory(training: Training) -> Memory:
    """Return the memory of a step at the training's micro-batch of longest rows."""
    language, prefix, trained = training.language, training.prefix, training.trained
    frozen = 0 if training.method == "full" else language.parameters
    copies = prefix.matrices + training.adapters
    if training.method == "full":
        copies += language.layer_matrices + language.head
    element = 2 if training.half else 4
    packed = language.layer_matrices if training.packed else 0
    rows, text = training.micro_batch, training.text.longest
    positions = rows * (training.prefix_tokens + text)
    layer = positions * _kept_in_layer(training, element)
    before = positions - rows * text
    kept = before * (element * prefix.kept + 4 * prefix.kept_single)
    kept += positions * 4 * language.width  # the last norm's input
    inside = positions * _backward_of_layer(training, element)
    if training.checkpointing:
        stream = 2 if training.half and training.method != "full" else 4
        kept += language.layers * positions * stream * language.width
        inside += layer
    else:
        kept += language.layers * layer
    # Of logits, their softmax and the gradient of either, at most three exist at a time.
    at_once = LOGIT_ROWS if training.method == "full" else FROZEN_ROWS
    logits = 12 * language.vocabulary * min(rows * text, at_once)
    return Memory(
        weights=element * (frozen - packed)
        + round(NF4 * packed)
        + 4 * trained
        + (2 * copies if training.half else 0),
        gradients=4 * trained,
        optimizer=round((MOMENTS_8BIT if training.moments_8bit else 8) * trained),
        activations=kept,
        # A packed matrix is unpacked while it is used.
        transient=max(logits, inside + bool(packed) * element * language.width * language.inner),
    )


def _kept_in_layer(training: Training, element: int) -> int:
    """Return the bytes that a decoder layer keeps for each position, without checkpointing."""
    language = training.language
    width, inner = language.width, language.inner
    kept = 4 * width + 8  # the norm's input, its mean and deviation
    # Queries, keys, values, output, log-sum-exp.
    kept += element * 2 * (language.queries + language.keys) + 4 * language.heads
    if language.gated:
        # The second norm; gate, its SiLU and up, and if weights are trained, their product, too.
        kept += element * (width // 2 + 3 * inner)
        kept += element * (inner + width // 2) * (training.method == "full")
    else:
        kept += element * inner + (0 if language.fused_gelu else 12 * inner)
    if training.masked:
        kept += element * (training.prefix_tokens + training.text.longest)
    if training.method != "frozen" and language.dropout:
        kept += 2 * width
    if training.method == "full":
        # Under autocast each of the four layers after the norm keeps a copy of its own.
        kept += element * width * (4 if training.half else 1) + element * inner
    if training.method == "lora":
        for name in training.targets:
            inputs = language.linears[name][0] if name in language.linears else 0
            kept += inputs * (1 + element) + element * training.rank * bool(inputs)
    return kept


def _backward_of_layer(training: Training, element: int) -> int:
    """Return the bytes of gradients in flight for each position, in the MLP of a layer."""
    language = training.language
    single = element if language.fused_gelu else 4
    gradients = 2 * single * language.inner + 2 * element * language.width
    # The kept input of a trained fc2 is freed before the GELU's own gradient is computed.
    return gradients - (0 if training.method == "frozen" else element * language.inner)


def flops(training: Training, rows: float) -> tuple[float, float]:
    """Return the operations of a forward and backward pass over mean rows.

    Returns:
        Those of the model, and those that checkpointing adds by recomputing the layers.
    """
    size, text = training.size, training.text
    model = training_flops(
        size,
        rows=rows,
        text_tokens=rows * text.mean,
        targets=rows * text.targets,
        before=training.passes,
    )
    length = size.prefix_tokens + text.mean
    again = rows * length * (size.layers.forward + 2 * size.attention * (length + 1))
    return model, again if training.checkpointing else 0.0


def largest_micro_batch(training: Training, available: float) -> int:
    """Return how many rows a forward pass can have in so many bytes; 0 if none fits."""
    return most(lambda rows: memory(replace(training, micro_batch=rows)).total <= available)


def most(fits: Callable[[int], bool]) -> int:
    """Return the largest number that fits, 0 where not even 1 does."""
    low, high = 0, 1
    while fits(high) and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
