"""The plan of memory and time: counts against the modules, bytes against measured steps."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from flows.cli import main
from flows.commands.hardware import COLUMNS, advice, device_of, rows_of
from model import frozen_head
from model import vlm as vlm_module
from model.flops import size_of
from model.language import add_lora
from model.language_table import LANGUAGE_MODELS, LanguageLine
from model.objectives import standard
from model.projector_costs import projector_costs
from model.projectors import (
    LateMixtureConfig,
    LinearConfig,
    MixtureConfig,
    Mlp2xGeluConfig,
    ProjectorConfig,
    SparseMixtureConfig,
)
from model.vlm import VisionLanguageModel, build_vlm, freeze
from pipeline.costs.training import (
    FROZEN_ROWS,
    LOGIT_ROWS,
    Method,
    Text,
    Training,
    largest_micro_batch,
    memory,
    trainings,
)
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset
from pipeline.training.collate import collate
from tests.support.peak_memory import peak_allocated
from tests.unit.pipeline.engine.test_plan import command

PATCHES, VISION, RANK = 9, 24, 4
TINY = LanguageLine(300, 64, 3, 2, 256, 64, fused_gelu=True, dropout=0.0)
LLAMA = LanguageLine(
    300, 64, 3, 4, 176, 64, fused_gelu=True, dropout=0.0, groups=2, layout="llama", tied=True
)
TOLERANCE = 0.1
SPARSE = SparseMixtureConfig(
    reducer="none", tokens=9, experts=4, layers=2, active=2, balance_weight=0.01
)
MIXTURE = MixtureConfig(reducer="none", tokens=PATCHES, experts=3, layers=2, balance_weight=0.01)


def stock(line: LanguageLine) -> PreTrainedModel:
    """transformers' own model of these dimensions."""
    if line.layout == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=line.vocabulary,
                hidden_size=line.width,
                intermediate_size=line.inner,
                num_hidden_layers=line.layers,
                num_attention_heads=line.heads,
                num_key_value_heads=line.groups,
                tie_word_embeddings=line.tied,
            )
        )
    return PhiForCausalLM(
        PhiConfig(
            vocab_size=line.vocabulary,
            hidden_size=line.width,
            intermediate_size=line.inner,
            num_hidden_layers=line.layers,
            num_attention_heads=line.heads,
            hidden_act="gelu_pytorch_tanh" if line.fused_gelu else "gelu_new",
            resid_pdrop=line.dropout,
        )
    )


def opened(line: LanguageLine, method: Method, projector: ProjectorConfig) -> VisionLanguageModel:
    """A model whose parameters are trained as a stage trains them."""
    torch.manual_seed(0)
    vlm = build_vlm(projector, VISION, PATCHES, stock(line))
    if method == "frozen":
        freeze(vlm.language_model)
    if method == "lora":
        add_lora(vlm.language_model, rank=RANK, alpha=8, dropout=0.1, targets="all-linear")
    return vlm.train()


def training(line: LanguageLine, method: Method, **changes: object) -> Training:
    """The same training for the plan, in float32."""
    made = Training(
        name=method,
        language=line,
        prefix=projector_costs(MIXTURE, VISION, PATCHES, line.width),
        prefix_tokens=PATCHES + 1,
        text=Text(40, 40, 40),
        method=method,
        rank=RANK,
        targets=line.named("all-linear"),
        packed=False,
        half=False,
        moments_8bit=False,
        checkpointing=False,
        masked=False,
        passes=0,
        batch=16,
        micro_batch=16,
        rows=160,
    )
    return replace(made, **changes)  # ty: ignore[invalid-argument-type]


# -- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [*LANGUAGE_MODELS.values(), TINY, LLAMA])
def test_parameters_are_those_of_transformers_model(line: LanguageLine) -> None:
    with torch.device("meta"):
        model = stock(line)
    assert line.parameters == sum(p.numel() for p in model.parameters())
    layers = [p for p in model.get_submodule("model.layers").parameters() if p.ndim == 2]
    assert line.layer_matrices == sum(p.numel() for p in layers)
    for name, (inputs, outputs) in line.linears.items():
        inside = "mlp" if name.startswith(("fc", "gate", "up", "down")) else "self_attn"
        part = model.get_submodule(f"model.layers.0.{inside}")
        assert tuple(part.get_parameter(f"{name}.weight").shape) == (outputs, inputs)


def test_phi_2_has_the_parameters_it_is_known_for() -> None:
    assert LANGUAGE_MODELS["microsoft/phi-2"].parameters == 2_779_683_840


def test_smollm2_has_the_parameters_it_is_known_for() -> None:
    line = LANGUAGE_MODELS["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert line.parameters == 134_515_008
    assert len(line.linears) * line.layers == 210


@pytest.mark.parametrize(
    "config",
    [
        LinearConfig(),
        Mlp2xGeluConfig(),
        LateMixtureConfig(layers=3),
        MIXTURE,
        MixtureConfig(reducer="linear", tokens=4, experts=2, layers=1, balance_weight=0.0),
        MixtureConfig(reducer="pool", tokens=4, experts=2, layers=1, balance_weight=0.0),
        SPARSE,
    ],
    ids=lambda config: f"{config.kind}-{getattr(config, 'reducer', '')}",
)
def test_projector_parameters_are_those_of_the_modules(config: ProjectorConfig) -> None:
    module = config.build(VISION, PATCHES, 32, 0.1)
    counted = projector_costs(config, VISION, PATCHES, 32).parameters
    assert counted == sum(p.numel() for p in module.parameters()) + 32  # the separator


@pytest.mark.parametrize("config", [Mlp2xGeluConfig(), SPARSE], ids=lambda config: config.kind)
@pytest.mark.parametrize("method", ["frozen", "lora", "full"])
def test_what_is_trained_and_worked_is_what_the_model_has(
    method: Method, config: ProjectorConfig
) -> None:
    vlm = opened(TINY, method, config)
    costs = projector_costs(config, VISION, PATCHES, TINY.width)
    planned = training(TINY, method, prefix=costs)
    assert planned.trained == sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    assert planned.size == size_of(vlm, PATCHES + 1)
    idle = 2 * VISION**2 if config is SPARSE else 0  # two of four experts
    assert planned.size.prefix.trained == costs.matrices - idle


def test_chunks_of_logits_are_the_models() -> None:
    assert (FROZEN_ROWS, LOGIT_ROWS) == (frozen_head.ROWS, vlm_module.LOGIT_ROWS)


# -- bytes --------------------------------------------------------------------------------------


def pass_of(vlm: VisionLanguageModel, planned: Training) -> Callable[[], None]:
    """Forward and backward of as many rows and tokens as planned, in equal rows."""
    rows, per_row = planned.micro_batch, 2 if planned.masked else 1
    length = planned.text.longest // per_row
    words = np.arange(length) % planned.language.vocabulary
    texts, every = [words] * (rows * per_row), [np.ones(length, np.bool_)] * (rows * per_row)

    def run() -> None:
        batch = collate(torch.randn(rows, PATCHES, VISION), texts, every, [per_row] * rows)
        standard(vlm, batch).loss.backward()

    return run


@pytest.mark.parametrize("method", ["frozen", "lora", "full"])
@pytest.mark.parametrize(
    ("checkpointing", "fused", "masked", "words", "rows"),
    [
        (False, True, True, 300, 16),
        (False, False, False, 300, 16),
        (True, True, True, 300, 16),
        (True, False, False, 300, 16),
        (False, False, False, 51_200, 4),
        (False, True, False, 3000, 32),  # more supervised tokens than a chunk of logits
    ],
)
def test_the_planned_memory_is_that_of_a_measured_pass(
    method: Method, checkpointing: bool, fused: bool, masked: bool, words: int, rows: int
) -> None:
    compare_with_measured(
        TINY._replace(fused_gelu=fused, vocabulary=words, layers=6),
        method,
        checkpointing=checkpointing,
        masked=masked,
        rows=rows,
    )


@pytest.mark.parametrize("method", ["frozen", "lora", "full"])
@pytest.mark.parametrize(("checkpointing", "masked"), [(False, False), (False, True), (True, True)])
def test_the_planned_memory_of_a_llama_is_that_of_a_measured_pass(
    method: Method, checkpointing: bool, masked: bool
) -> None:
    compare_with_measured(
        LLAMA._replace(layers=6), method, checkpointing=checkpointing, masked=masked, rows=16
    )


def compare_with_measured(
    line: LanguageLine, method: Method, *, checkpointing: bool, masked: bool, rows: int
) -> None:
    """Hold the plan of a step against the step."""
    planned = training(line, method, checkpointing=checkpointing, masked=masked, micro_batch=rows)
    vlm = opened(line, method, MIXTURE)
    if checkpointing:
        vlm.enable_gradient_checkpointing()
    run = pass_of(vlm, planned)
    run()  # makes the gradients, which are there in every later pass of an optimizer step
    measured = peak_allocated(run)
    need = memory(planned)
    beyond = need.activations + need.transient
    if method == "lora":
        # On a CPU a mask of dropout has 4 bytes for each number, on a GPU 1.
        inputs = sum(count for count, _ in line.linears.values())
        layers = 1 if checkpointing else line.layers
        beyond += 3 * inputs * layers * rows * (planned.prefix_tokens + planned.text.longest)
    assert beyond == pytest.approx(measured, rel=TOLERANCE)


def test_half_precision_trains_a_frozen_phi_2_in_two_bytes_a_parameter() -> None:
    by_name = {each.name: memory(each) for each in trainings(preset("coco"))}
    phi_2 = LANGUAGE_MODELS["microsoft/phi-2"].parameters
    frozen, full = by_name["pretrain"], by_name["finetune full"]
    assert 2 * phi_2 < frozen.weights < 2.1 * phi_2
    assert full.weights + full.gradients + full.optimizer == pytest.approx(18 * phi_2, rel=0.02)


# -- the plan -----------------------------------------------------------------------------------


def test_one_more_row_than_the_largest_micro_batch_does_not_fit() -> None:
    for each in trainings(preset("coco")):
        rows = largest_micro_batch(each, 72e9)
        assert memory(replace(each, micro_batch=rows)).total <= 72e9
        assert memory(replace(each, micro_batch=rows + 1)).total > 72e9
    assert largest_micro_batch(next(trainings(preset("coco"))), 5e9) == 0


def test_seconds_are_operations_over_the_stated_peak_and_share() -> None:
    coco = preset("coco")
    slow, fast = (
        [row["step_seconds"] for row in rows_of(coco, device_of("80GB", peak), 0.4)]
        for peak in (100.0, 200.0)
    )
    assert [a / b for a, b in zip(slow, fast, strict=True)] == pytest.approx([2] * 8, rel=0.02)
    once, again = slow[:2]
    assert 1 < again / once < 2  # a third forward beside forward and backward
    pretrain = next(trainings(coco))
    positions = pretrain.batch * (50 + pretrain.text.mean)
    dense = positions * pretrain.language.layer_matrices * 4  # forward, and gradients of inputs
    assert dense < once * 100e12 * 0.4 < 1.3 * dense


def test_hours_are_those_of_all_rows_of_all_epochs() -> None:
    def hours(**changes: float) -> list[float]:
        recipe = preset("coco").override(changes)
        return [row["hours"] for row in rows_of(recipe, device_of("H100", None), 0.4)]

    once = hours()
    assert hours(**{"images.limit": 80_000}) == pytest.approx([2 * each for each in once], rel=0.02)
    assert hours(**{"finetune.epochs": 3.0})[2] == pytest.approx(3 * once[2], rel=0.02)
    pretrain = next(trainings(preset("coco")))
    assert pretrain.rows == pytest.approx(40_000 * 0.98)  # five captions of an image in a row


def test_packed_layers_are_about_a_quarter_of_their_weights_in_bf16() -> None:
    plain, packed = (each for each in trainings(preset("coco")) if each.method == "lora")
    saved = memory(plain).weights - memory(packed).weights
    in_bf16 = 2 * plain.language.layer_matrices
    assert saved / in_bf16 == pytest.approx(0.742, abs=0.001)
    assert memory(packed).activations == memory(plain).activations


def test_a_device_is_a_name_or_an_amount() -> None:
    assert device_of("h100", None).memory == 80e9
    assert device_of("24 GB", 50.0) == (24e9, 50e12, 0.3e12)
    with pytest.raises(PipelineError, match=r"no device 'X9'[\s\S]*use one of L4, A100"):
        device_of("X9", None)


def test_the_command_prints_every_training_and_imports_nothing_heavy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("plan", "--preset", "coco", "--hardware", "80GB")
    text, _, loaded = command(*arguments, cache=tmp_path)
    assert loaded == []
    unit, *lines = text.splitlines()
    assert unit == "memory in GB"
    assert lines[0].split()[:4] == ["training", "ckpt", "weights", "state"]
    names = ["pretrain", "finetune LoRA", "finetune QLoRA", "finetune full"]
    assert [line.split("  ")[0].removesuffix(" *") for line in lines[1:9:2]] == names
    assert [" * " in line for line in lines[1:9]] == [False, True, False, True, *[False] * 4]
    main([*arguments, "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    hours = [row["hours"] for row in rows if row["in_recipe"] and row["hours"]]
    assert len(hours) == 3  # pretrain, finetune, evaluate; a chat has no end
    assert f"→ GPU hours of this recipe: {sum(hours):.3g} (pretrain {hours[0]:.3g}, " in text
    chosen = [False, True, False, True, *[False] * 4, True, True]
    assert [row["in_recipe"] for row in rows] == chosen
    assert [row["training"] for row in rows[8:]] == ["evaluate", "chat"]
    for row in rows:
        parts = ("weights", "gradients", "optimizer", "activations", "transient")
        assert math.fsum(row[part] for part in parts) == pytest.approx(row["total"], abs=0.03)
        assert row["fits"] == (row["largest_micro_batch"] >= row["micro_batch"])


def test_the_plan_of_an_encoder_of_timm_reads_its_shape_from_the_model() -> None:
    pretrain = next(trainings(preset("photos")))
    shape = projector_costs(preset("photos").pretrain.projector, 1280, 49, 576)
    assert pretrain.prefix == shape
    assert pretrain.prefix_tokens == preset("photos").pretrain.projector.tokens_out(49) + 1


def advised(device: str, **changes: object) -> list[str]:
    recipe = preset("coco").override(changes)
    return list(advice(list(rows_of(recipe, device_of(device, None), 0.4)), recipe))


def test_a_faster_choice_that_fits_is_advised() -> None:
    found = advised("H200")
    assert len(found) == 2
    assert re.fullmatch(
        r"pretrain fits without checkpointing, 1\.[45] times as fast: "
        r"--set pretrain\.gradient_checkpointing=false",
        found[0],
    )
    assert advised("24GB") == []  # with checkpointing it fits, without it does not


def test_what_does_not_fit_is_told_with_what_would() -> None:
    (pretrain, finetune) = advised(
        "24GB",
        **{
            "pretrain.micro_batch": 48,
            "pretrain.gradient_checkpointing": False,
            "finetune.method": "full",
        },
    )
    # 24 of 48 fit with checkpointing, and 48 do, too.
    assert pretrain == "pretrain does not fit: --set pretrain.gradient_checkpointing=true"
    assert finetune == ("finetune full does not fit at any micro_batch: --set finetune.method=lora")
    assert "--set finetune.quantize=nf4" in advised("10GB")[-1]
    (small,) = advised("16GB", **{"finetune.micro_batch": 64})[-1:]
    fields = re.fullmatch(r"finetune LoRA does not fit: --set finetune\.micro_batch=(\d+)", small)
    assert fields is not None
    assert 128 % int(fields[1]) == 0


@pytest.mark.parametrize(
    ("hours", "told"), [(0.25, "15 min"), (0.99, "59 min"), (1.04, "1.0 h"), (None, None)]
)
def test_times_are_minutes_below_an_hour(hours: float | None, told: str | None) -> None:
    assert COLUMNS["time"]({"hours": hours}) == told
