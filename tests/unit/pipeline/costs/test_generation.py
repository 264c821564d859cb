"""The plan of evaluation and chat: bytes against measured passes, time against the device."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows.commands.hardware import Device, writing_rows
from model import batch_cache
from model.language_table import LANGUAGE_MODELS
from model.projector_costs import projector_costs
from pipeline.costs.generation import SPARE, Writing, most_rows, writing_memory, writings
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.likelihood import likelihood
from pipeline.evaluation.tasks import Task
from pipeline.evaluation.writing import write_texts
from pipeline.recipe.presets import preset
from tests.support.peak_memory import peak_allocated
from tests.support.shown_images import key_of, write_images
from tests.unit.pipeline.costs.test_training import MIXTURE, PATCHES, TINY, VISION, opened

TOLERANCE = 0.15
CARD = Device(24e9, 100e12, 1e12)


def written(words: int, rows: int, *, fused: bool, **changes: int) -> Writing:
    """A use of a tiny model in float32."""
    line = TINY._replace(fused_gelu=fused, vocabulary=words, layers=6)
    made = Writing(
        name="evaluate",
        language=line,
        prefix=projector_costs(MIXTURE, VISION, PATCHES, line.width),
        prefix_tokens=PATCHES + 1,
        encoder=0,
        half=False,
        rows=rows,
        images=rows,
        prompt=40,
        new=12,
        read=0,
        steps=0,
        positions=0,
    )
    return replace(made, **changes)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("words", "rows", "prompt", "new"), [(300, 16, 40, 4), (300, 8, 4, 40), (51_200, 8, 20, 20)]
)
def test_the_planned_memory_is_that_of_measured_writing(
    tmp_path: Path, fused: bool, words: int, rows: int, prompt: int, new: int
) -> None:
    planned = written(words, rows, fused=fused, prompt=prompt, new=new)
    vlm = opened(planned.language, "frozen", MIXTURE)
    shown = shown_images(tmp_path, 2 * rows)
    tasks = [Task("answer", image, [5] * prompt, {}) for image in range(2 * rows)]
    part = preset("demo").evaluate.model_copy(update={"batch": rows, "max_new_tokens": new})

    def write() -> None:
        for _ in write_texts(vlm, tasks, shown, ["real"], part, -1, "cpu"):
            pass

    write()
    need = writing_memory(planned)
    assert need.activations + need.transient == pytest.approx(peak_allocated(write), rel=TOLERANCE)
    assert SPARE == batch_cache.SPARE


def shown_images(folder: Path, count: int) -> Shown:
    """Random patch embeddings of test images."""
    values = np.random.default_rng(0).standard_normal((count, PATCHES, VISION))
    patches = write_images(folder, values.astype(np.float16))
    return Shown(patches, np.arange(count), np.arange(count), 0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("words", "rows"), [(300, 16), (3000, 32)])
def test_the_planned_memory_is_that_of_a_measured_likelihood(
    tmp_path: Path, fused: bool, words: int, rows: int
) -> None:
    # Nothing but a likelihood: a single word is written.
    planned = written(words, rows, fused=fused, prompt=0, new=0, read=40)
    vlm = opened(planned.language, "frozen", MIXTURE)
    shown = shown_images(tmp_path, rows)
    ids = (np.arange(40) % words).tolist()
    texts = [
        {"sha256": key_of(n), "more_sha256": [], "input_ids": ids, "supervised": [True] * 40}
        for n in range(rows)
    ]

    def read() -> None:
        likelihood(vlm, texts, shown, ["real"], rows, "cpu")

    read()
    need = writing_memory(planned)
    assert need.activations + need.transient == pytest.approx(peak_allocated(read), rel=TOLERANCE)


def test_evaluation_of_phi_2_holds_one_model_and_fits_a_card_of_24_gb() -> None:
    evaluated, chat = writings(preset("coco"))
    phi_2 = LANGUAGE_MODELS["microsoft/phi-2"].parameters
    assert 2 * phi_2 < writing_memory(evaluated).weights < 2.1 * phi_2
    assert writing_memory(chat).total < writing_memory(evaluated).total < 0.9 * 24e9
    rows = most_rows(evaluated, 0.9 * 24e9)
    assert writing_memory(replace(evaluated, rows=rows)).total <= 0.9 * 24e9
    assert writing_memory(replace(evaluated, rows=rows + 1)).total > 0.9 * 24e9
    single = preset("coco").override({"finetune.precision": "fp32"})
    assert writing_memory(next(writings(single))).weights > 3.9 * phi_2


def test_writing_waits_for_the_memory_and_evaluation_takes_as_long_as_its_texts() -> None:
    def hours(device: Device = CARD, **changes: int) -> float:
        recipe = preset("coco").override({f"evaluate.{name}": n for name, n in changes.items()})
        return next(writing_rows(recipe, device, 0.4))["hours"]

    evaluated, chat = writing_rows(preset("coco"), CARD, 0.4)
    layers = 2 * 2.5e9  # bytes of Phi-2's layers in bf16
    assert layers < chat["step_seconds"] * 1e12 * 0.4 < 1.3 * layers
    assert evaluated["step_seconds"] > chat["step_seconds"]
    assert chat["hours"] is None
    once = hours()
    assert hours(CARD._replace(bandwidth=0.5e12)) > 1.5 * once
    assert 1.7 * once < hours(max_new_tokens=256) < 2.5 * once
    assert hours(images=10, questions=10) < 0.1 * once
