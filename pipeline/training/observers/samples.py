"""Texts that the model generates for a few held-out images during training, as a wandb table.

It is for users only: nothing of it enters the artifact, and it draws no random number.
"""

import io
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from tokenizers import Tokenizer

from model.generation import generate
from model.generation_configs import GreedyConfig
from model.training import TrainingModule
from pipeline.data.lm_folder import eos_id
from pipeline.engine.stage import InputArtifact, StageContext
from pipeline.training.example_sets import ExampleSet
from pipeline.training.observers.wandb_logger import PatientLogger
from storage.tables import read_table

IMAGES = 8
TIMES = 4  # tables per training: generating a table costs as much as many training steps
NEW_TOKENS = 32
SIDE = 160  # pixels of an image in the table
COLUMNS = ("step", "image", "prompt", "people wrote", "the model writes")


@dataclass(frozen=True)
class Shown:
    """One held-out example of the table."""

    image: Image.Image
    patches: torch.Tensor
    prompt: list[int]
    answer: str


class SamplesCallback(Callback):
    """Logs a table of free-running generations a few times per training, the last at its end.

    Every process generates, since FSDP shards the weights over all of them; one logs.
    """

    def __init__(self, context: StageContext, validation: ExampleSet, rounds: int) -> None:
        folder = context.inputs["backbones"].directory("lm")
        self.eos_id = eos_id(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        images = context.inputs.get("images")
        self.shown = [] if images is None else self._choose(images, validation)
        self.rounds = {round(rounds * part / TIMES) for part in range(1, TIMES + 1)}

    def _choose(self, images: InputArtifact, validation: ExampleSet) -> list[Shown]:
        """Return examples about the first available images, one for each image."""
        shard = next(name for name in images.names if name.startswith("files-"))
        table = read_table(images.path(shard))
        data = dict(zip(table["sha256"].to_pylist(), table["data"], strict=True))
        chosen: dict[str, Shown] = {}
        for row in validation.rows:
            if not validation.has_one_image(int(row[0])):
                continue
            sha256, patches = validation.image(int(row[0]))
            if sha256 in data and sha256 not in chosen:
                prompt, answer = validation.opening(int(row[0]))
                text = self.tokenizer.decode(answer, skip_special_tokens=True).strip()
                chosen[sha256] = Shown(_small(data[sha256].as_py()), patches, prompt, text)
            if len(chosen) == IMAGES:
                break
        return list(chosen.values())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a table after some of the rounds."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.current_epoch + 1 not in self.rounds or not self.shown:
            return
        patches = torch.stack([each.patches for each in self.shown]).to(pl_module.device)
        with trainer.precision_plugin.forward_context():  # Lightning is not in it during callbacks
            written = generate(
                pl_module.vlm,
                patches,
                [each.prompt for each in self.shown],
                eos_id=self.eos_id,
                max_new_tokens=NEW_TOKENS,
                decoding=GreedyConfig(),
            )
        for logger in trainer.loggers:
            if isinstance(logger, PatientLogger):
                ids = [each.ids for each in written]
                logger.attempt(self._log, logger, trainer.global_step, ids)

    def _log(self, logger: PatientLogger, step: int, written: list[list[int]]) -> None:
        import wandb

        def text(ids: list[int]) -> str:
            return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

        rows = [
            [step, wandb.Image(each.image), text(each.prompt), each.answer, text(ids)]
            for each, ids in zip(self.shown, written, strict=True)
        ]
        logger.log_table("held_out", columns=list(COLUMNS), data=rows)


def _small(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return image
