"""Tiny inputs of the two training stages, written once: a Phi, patches, captions, conversations."""

import gc
import io
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from model.augmentation_configs import AugmentationConfig
from model.objective_configs import ObjectiveConfig, ScheduledSamplingConfig, StandardConfig
from model.projectors import LinearConfig, ProjectorConfig
from pipeline.data.schemas import EXAMPLES, IMAGE_FILES
from pipeline.engine.processes import Files
from pipeline.engine.stage import StageContext
from pipeline.progress import ConsoleReporter, Reporter, Ticker
from pipeline.recipe.parts import FinetunePart, PretrainPart
from pipeline.settings import Settings
from storage.features.shards import ShardRows, shard_paths, write_shard
from storage.tables import read_table, write_table
from tests.support.forks import FORKS

NO_AUGMENTATION = AugmentationConfig(mirrored=0.0, dropped=0.0)
IMAGES, PATCHES, VISION, WORDS = 40, 4, 12, 96
SPOILT = WORDS - 1
SCHEDULED = ScheduledSamplingConfig(
    decay="linear", start_rate=0.8, end_rate=0.2, sharpness=1.0, passes=1
)


def write_inputs(root: Path, spoilt: int | None = None) -> None:
    """Write the artifacts `images`, `examples`, `features` and `backbones` as folders.

    Args:
        root: The folder.
        spoilt: An image whose texts begin with the word `SPOILT`, which no other text has.
    """
    rng = np.random.default_rng(0)
    keys = [sha256(str(number).encode()).hexdigest() for number in range(IMAGES)]
    write_table(root / "examples/examples.parquet", _examples(rng, keys, spoilt), EXAMPLES)
    patches = rng.standard_normal((IMAGES, PATCHES, VISION)).astype(np.float16)
    rows = ShardRows(
        sha256=keys,
        image_id=np.arange(IMAGES),
        width=np.full(IMAGES, 8, np.int32),
        height=np.full(IMAGES, 8, np.int32),
        split=["train"] * IMAGES,
        pooled=np.ones((IMAGES, 2), np.float32),
        patches=patches,
    )
    (root / "features").mkdir()
    write_shard(root / "features", 0, rows, "encoder")
    assert all(path.is_file() for path in shard_paths(root / "features", 0))
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    files = [{"sha256": key, "data": image.getvalue()} for key in keys]
    write_table(root / "images/files-00000.parquet", files, IMAGE_FILES)
    _write_phi(root / "backbones/lm")


def _examples(
    rng: np.random.Generator, keys: list[str], spoilt: int | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image, key in enumerate(keys):
        for kind in ("caption", "caption", "conversation"):
            length = int(rng.integers(3, 7 if kind == "caption" else 12))
            words = (image + np.arange(length - 1)) % (WORDS - 2) + 1
            if image == spoilt:
                words[0] = SPOILT
            asked = 0 if kind == "caption" else length // 2
            rows.append(
                {
                    "example_id": len(rows),
                    "kind": kind,
                    "split": "validation" if image % 8 == 7 else "train",
                    "image_id": image,
                    "sha256": key,
                    "more_sha256": [],
                    "source_id": len(rows),
                    "turns": 1,
                    "text": "",
                    # What can be learned: the words follow each other.
                    "input_ids": [*words, 0],
                    "supervised": [place >= asked for place in range(length)],
                }
            )
    return rows


def _write_phi(folder: Path) -> None:
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    PhiForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_tied_llama(root: Path) -> None:
    """Put a Llama, whose two embeddings are one weight, in the Phi's place."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(root / "backbones/lm")


def spoil(root: Path) -> None:
    """Make the word embedding of `SPOILT` NaN."""
    path = root / "backbones/lm/model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][SPOILT] = torch.nan
    save_file(weights, path, {"format": "pt"})


def files_of(folder: Path) -> Files:
    """A folder as a stage sees an artifact."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return Files({path.relative_to(folder).as_posix(): str(path) for path in found})


def context_of(
    root: Path,
    work: Path,
    report: Reporter | None = None,
    wandb: str = "disabled",
    **settings: Any,
) -> StageContext:
    """What surrounds a stage: inputs below `root`, everything it writes below `work`."""
    for name in ("out", "scratch"):
        (work / name).mkdir(parents=True, exist_ok=True)
    names = [path.name for path in sorted(root.iterdir()) if path.is_dir()]
    values = {"store": str(work), "device": "cpu", "threads": 1, "wandb": wandb, **settings}
    return StageContext(
        inputs={name: files_of(root / name) for name in names},
        out=work / "out",
        scratch=work / "scratch",
        settings=Settings.model_validate(values),
        report=report or ConsoleReporter(),
    )


@dataclass(frozen=True)
class Choices:
    """What the tests vary; 40 rows in batches of 8 make 4 or 5 steps an epoch."""

    stage: str = "pretrain"
    objective: ObjectiveConfig = field(default_factory=lambda: StandardConfig(replaced=0.0))
    method: str = "full"
    epochs: float = 5.0
    micro_batch: int = 4
    examples_per_row: int = 2
    rate: float = 3e-3
    projector: ProjectorConfig = field(default_factory=LinearConfig)
    dropout: float = 0.1
    keep: Literal["best", "last"] = "best"
    patience: int = 0
    captions: float = 0.3
    validation: int = 1000
    precision: str = "fp32"
    optimizer: str = "adamw"
    attention: str = "sdpa"
    quantize: str = "none"
    checkpointing: bool = False
    augment: AugmentationConfig = NO_AUGMENTATION
    targets: Any = ("q_proj", "dense", "fc1")

    def part(self) -> PretrainPart | FinetunePart:
        """The recipe part of the stage."""
        shared: dict[str, Any] = {
            "objective": self.objective,
            "epochs": self.epochs,
            "batch": 8,
            "micro_batch": self.micro_batch,
            "examples_per_row": self.examples_per_row,
            "augment": self.augment,
            "optimizer": self.optimizer,
            "weight_decay": 0.01,
            "warmup_share": 0.1,
            "clip_norm": 1.0,
            "precision": self.precision,
            "attention": self.attention,
            "gradient_checkpointing": self.checkpointing,
            "validate_every": 5,
            "validation_examples": self.validation,
            "keep": self.keep,
            "patience": self.patience,
            "learning_rate": self.rate,
        }
        if self.stage == "pretrain":
            return PretrainPart(
                projector=self.projector, start="", separator_learning_rate=self.rate, **shared
            )
        return FinetunePart(
            method=self.method,
            projector_learning_rate=self.rate,
            caption_share=self.captions,
            lora_rank=4,
            lora_alpha=8,
            lora_dropout=self.dropout,
            lora_targets=self.targets,
            least_image_gain=0.0,
            quantize=self.quantize,
            **shared,
        )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Call the stage's own function."""
        from pipeline.training.finetune import finetune
        from pipeline.training.pretrain import pretrain

        function: Any = pretrain if self.stage == "pretrain" else finetune
        return dict(function(context, self.part(), 3))


def language_models() -> list[PreTrainedModel]:
    """Return every language model that this process holds, garbage included."""
    # Asking `isinstance` would wake proxies that libraries deprecate.
    found = [each for each in gc.get_objects() if issubclass(type(each), PreTrainedModel)]
    return [each for each in found if hasattr(each, "lm_head")]


def pretrained(root: Path, folder: Path) -> None:
    """Write the artifact `pretrain` that finetuning reads."""
    context = context_of(root, folder)
    Choices(epochs=1.0).run(context)
    context.out.rename(root / "pretrain")


def figures(context: StageContext) -> dict[str, list[float]]:
    """The rows of `training.parquet` by metric."""
    found: dict[str, list[float]] = {}
    for row in read_table(context.out / "training.parquet").to_pylist():
        found.setdefault(row["metric"], []).append(row["value"])
    return found


class Stopping:
    """A reporter that tells each step and waits for ever after one of them."""

    def __init__(self, pipe: Connection, stop: int) -> None:
        self.pipe, self.stop, self.step = pipe, stop, 0

    def say(self, text: str) -> None:
        """Nothing is shown."""

    @contextmanager
    def track(self, label: str, total: int | None, done: int = 0) -> Generator[Ticker]:
        """Count steps."""
        yield self.tick

    def tick(self, amount: int = 1, note: str = "") -> None:
        """Tell the step; at the last one, wait to be killed."""
        self.step += amount
        if amount and self.step == self.stop:
            self.pipe.send(self.step)
            threading.Event().wait()


def run_stage(
    root: Path, work: Path, choices: Choices, stop: int = 0, wandb: str = "disabled"
) -> None:
    """Run a stage in a process of its own; with `stop`, kill it right after that step."""
    here, there = FORKS.Pipe()
    running = FORKS.Process(
        target=_run_in_process, args=(str(root), str(work), choices, stop, wandb, there)
    )
    running.start()
    there.close()
    assert here.poll(300)
    assert here.recv() == (stop or "done")
    if stop:
        assert running.pid is not None
        os.kill(running.pid, signal.SIGKILL)
    running.join()
    assert running.exitcode == (-signal.SIGKILL if stop else 0)


def _run_in_process(
    root: str, work: str, choices: Choices, stop: int, wandb: str, pipe: Connection
) -> None:
    # A killed machine takes wandb's service along; the tests' own process may have named its own.
    os.environ.pop("WANDB_SERVICE", None)
    choices.run(context_of(Path(root), Path(work), Stopping(pipe, stop), wandb))
    pipe.send("done")


def last_checkpoint(work: Path) -> dict[str, Any]:
    """The state that a resume would begin with."""
    return torch.load(work / "scratch/checkpoints/last.ckpt", weights_only=True)
