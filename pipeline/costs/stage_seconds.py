"""How long stale stages will take, from what earlier artifacts of the store took; imports no torch.

An earlier artifact is a measurement of a stage if whatever decides the time of one image or text
was the same: models, batch sizes, precision, kind of data, and device. How much there is to do may
differ (`pipeline.costs.stage_work`). Two measurements of different size give a constant part and
one that grows with the work; of one, all above a constant is taken to grow.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from statistics import median
from typing import Any

from pipeline.costs.stage_work import Counts, Parts, counts_of, scaled_counts, work_of
from pipeline.engine.dag import BY_NAME
from pipeline.engine.materialize import model_code, payload_of
from pipeline.engine.plan import FORCED, Step
from pipeline.recipe.recipe import Recipe, flatten
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest

NEWEST = 8  # measurements of a stage that count …
READ = 32  # … of so many artifacts, the newest
# Seconds that do not grow with the work, where only one size was measured: mostly imports, of torch
# in the first. Measured between the demo with 1,181 and with 18,905 images; others had none.
CONSTANT = {"backbones": 4.0, "pretrain": 1.5}
# What an artifact of another version, one without any image, or one whose inputs are gone raises.
UNKNOWN = (KeyError, TypeError, ValueError, ZeroDivisionError)
SPREAD = 1.5  # largest over smallest work from which two parts can be told apart

_MODEL = ("backbones", "features.patches", "images.source.kind", "conversations.source.kind")
# Fields that decide how long a unit of work takes, by stage: all below these paths …
_DECISIVE = {
    "images": ("images.source",),
    "conversations": ("conversations.source", "images.source.kind"),
    "backbones": ("backbones", "images.source.kind", "conversations.source.kind"),
    "features": ("features", "backbones", "images.source.kind"),
    "examples": ("examples.filters", "images.source.kind", "conversations.source.kind"),
    "pretrain": ("pretrain", *_MODEL),
    "finetune": ("finetune", "pretrain.projector", *_MODEL),
    "evaluate": ("evaluate", "pretrain.projector", *_MODEL),
    "publish": ("backbones",),
}
# … but for those that only decide how much work there is, or change nothing in its speed.
_TRAINING_FREE = (
    "epochs weight_decay warmup_share clip_norm validate_every validation_examples keep patience "
    "start learning_rate separator_learning_rate projector_learning_rate caption_share lora_alpha "
    "lora_dropout least_image_gain objective.replaced augment.mirrored augment.dropped "
    "projector.balance_weight"
)
_FREE = {
    "images.source": "train test",
    "backbones": "clip_epochs clip_learning_rate lm_epochs lm_learning_rate",
    "features": "rows_per_shard",
    "pretrain": _TRAINING_FREE,
    "pretrain.projector": "balance_weight",
    "finetune": _TRAINING_FREE,
    "evaluate": "images questions likelihood_images pointing_images presence_question "
    "presence_answers caption_samples sample_temperature",
}


@dataclass(frozen=True)
class Forecast:
    """How long the stages of a plan will take.

    Attributes:
        seconds: By stage, in the order of the DAG: 0 where it is fresh, None where no earlier
            artifact says.
        machine: Device and threads of the artifacts that it is from; empty where none records any.
    """

    seconds: dict[str, float | None]
    machine: dict[str, str]

    @property
    def total(self) -> float:
        """Seconds of all stages whose time is known."""
        return sum(seconds or 0.0 for seconds in self.seconds.values())

    @property
    def unknown(self) -> list[str]:
        """Stages whose time is not known."""
        return [stage for stage, seconds in self.seconds.items() if seconds is None]


def forecast(
    recipe: Recipe, store: ArtifactStore, steps: Sequence[Step], settings: Settings
) -> Forecast:
    """Return how long each stage of a plan will take; no artifact is opened.

    A stage that depends on stale ones is taken to be made again, since its inputs may change.

    Args:
        recipe: The recipe of the plan.
        store: Whose manifests are the measurements.
        steps: The plan.
        settings: Name the device and threads, if they do; else those of the newest artifact count.

    Raises:
        StorageError: The store cannot be read.
    """
    if all(step.status == "fresh" for step in steps):
        return Forecast({step.stage: 0.0 for step in steps}, {})
    known = {step.stage: store.manifests(step.stage, READ) for step in steps}
    history = _History(recipe, known, {step.stage: step for step in steps}, settings)
    seconds = {
        step.stage: 0.0 if step.status == "fresh" else history.seconds(step.stage) for step in steps
    }
    return Forecast(seconds, history.machine)


@dataclass(frozen=True)
class _Origin:
    """All that an artifact was made of: parts of recipes and summaries, by part and by stage."""

    parts: Parts
    figures: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _History:
    recipe: Recipe
    known: Mapping[str, Sequence[Manifest]]
    steps: Mapping[str, Step]
    settings: Settings

    def seconds(self, stage: str) -> float | None:
        """Return the seconds of a stage, None where nothing says how many."""
        with suppress(*UNKNOWN):
            work = work_of(stage, self._parts, self._counts) - self._done_before(stage)
            measured = list(islice(self._measured(stage), NEWEST))
            return seconds_for(max(work, 0.0), measured, CONSTANT.get(stage, 0.0))
        return None

    @cached_property
    def machine(self) -> dict[str, str]:
        """Device and threads whose artifacts count."""
        made = (manifest for each in self.known.values() for manifest in each if manifest.machine)
        for manifest in sorted(made, key=lambda each: -each.created):
            machine = manifest.machine
            device, threads = self.settings.device, self.settings.threads
            if device not in ("auto", machine.get("device")):
                continue
            if device == "cuda" or threads is None or str(threads) == machine.get("threads"):
                return dict(machine)
        return {}

    def _measured(self, stage: str) -> Iterator[tuple[float, float]]:
        """Yield work and seconds of the earlier artifacts that are alike, the newest first."""
        wanted = _decisive(stage, self._parts)
        for manifest in self.known[stage]:
            if manifest.machine and _kind(manifest.machine) != _kind(self.machine):
                continue
            with suppress(*UNKNOWN):
                origin = self._origin(manifest)
                made = _decisive(stage, origin.parts)
                if all(made[field] == wanted[field] for field in made.keys() & wanted.keys()):
                    yield _work_done(stage, origin), _time_taken(stage, manifest)

    @cached_property
    def _parts(self) -> Parts:
        return self.recipe.model_dump(mode="json")

    @cached_property
    def _counts(self) -> Counts:
        """How much data there will be, from the newest examples of the same sources.

        Raises:
            KeyError: There were none.
        """
        step = self.steps["examples"]
        fresh = [step.manifest] if step.status == "fresh" and step.manifest else []
        sources = _sources(self._parts)
        for manifest in [*fresh, *self.known["examples"]]:
            with suppress(*UNKNOWN):
                origin = self._origin(manifest)
                if _sources(origin.parts) == sources:
                    return self._scaled(origin)
        raise KeyError("examples")

    def _scaled(self, origin: _Origin) -> Counts:
        counts = scaled_counts(counts_of(origin.figures), origin.parts, self._parts)
        images = self.steps["images"]
        if images.status == "fresh" and images.manifest is not None:  # now they are known
            known = images.manifest.summary["images"] / counts["images"]
            turns = {"turns": counts["turns"]}
            counts = {name: known * count for name, count in counts.items()} | turns
        return counts

    def _done_before(self, stage: str) -> float:
        """Return how many images the encoder has embedded already and will not embed again."""
        backbones = self.steps["backbones"]
        if stage != "features" or backbones.manifest is None:
            return 0.0
        if self.steps[stage].reason == FORCED:
            return 0.0
        code = model_code(payload_of(BY_NAME[stage], self.recipe, {}))
        wanted = _decisive(stage, self._parts) | _sources(self._parts, "images")
        done = [0.0]
        for manifest in self.known[stage]:
            same = manifest.payload["inputs"].get("backbones") == backbones.manifest.digest
            if not same or model_code(manifest.payload) != code:
                continue
            with suppress(*UNKNOWN):
                parts = self._origin(manifest).parts
                if _decisive(stage, parts) | _sources(parts, "images") == wanted:
                    done.append(float(manifest.summary["images"]))
        return max(done)

    def _origin(self, manifest: Manifest) -> _Origin:
        """Return what an artifact was made of; what is gone from the store is left out."""
        parts: dict[str, Any] = {}
        figures = {manifest.stage: manifest.summary}
        for name, digest in manifest.payload["inputs"].items():
            made = next((each for each in self.known[name] if each.digest == digest), None)
            if made is not None:
                below = self._origin(made)
                parts, figures = {**parts, **below.parts}, {**figures, **below.figures}
        return _Origin({**parts, **manifest.payload["recipe"]}, figures)


def seconds_for(
    work: float, measured: Sequence[tuple[float, float]], constant: float = 0.0
) -> float | None:
    """Return the seconds that some work will take, None where none was measured.

    Args:
        work: How much there is to do.
        measured: Work and seconds of what was done before.
        constant: Seconds that do not grow, where all that was measured was of about one size.
    """
    points = [(done, took) for done, took in measured if done > 0 and took > 0]
    if not points:
        return None
    sizes = [done for done, _ in points]
    if max(sizes) >= SPREAD * min(sizes):
        fixed, per_unit = _line(points)
        return fixed + per_unit * work
    return median(min(constant, t) + max(t - constant, 0.0) * work / d for d, t in points)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the constant part and that per unit of work, neither below zero.

    Least squares of the relative errors, so that a short run counts as much as a long one.
    """
    weighted = [(1 / took**2, done, took) for done, took in points]
    n = sum(w for w, _, _ in weighted)
    x, y = (sum(w * values[at] for w, *values in weighted) for at in (0, 1))
    xx = sum(w * done**2 for w, done, _ in weighted)
    xy = sum(w * done * took for w, done, took in weighted)
    slope = (n * xy - x * y) / (n * xx - x * x)
    constant = (y - slope * x) / n
    if slope < 0:
        return y / n, 0.0
    return (constant, slope) if constant >= 0 else (0.0, xy / xx)


def _work_done(stage: str, origin: _Origin) -> float:
    """Return how much an earlier artifact had to do."""
    if stage == "features":  # the rest was embedded before
        return float(origin.figures["features"]["embedded"])
    if stage in ("images", "conversations"):
        return float(origin.figures[stage][stage])
    return work_of(stage, origin.parts, counts_of(origin.figures))


def _kind(machine: Mapping[str, str]) -> tuple[str | None, ...]:
    """Return what decides the speed of a machine, as far as manifests say."""
    device = machine.get("device")
    return (device,) if device == "cuda" else (device, machine.get("threads"))


def _time_taken(stage: str, manifest: Manifest) -> float:
    """Return how long the work took; a training that was resumed says only how long the rest."""
    speed, part = manifest.summary.get("examples_per_second"), manifest.payload["recipe"].get(stage)
    if not speed or not part:
        return manifest.seconds
    return max(manifest.seconds, part["epochs"] * manifest.summary["examples"] / speed)


def _decisive(stage: str, parts: Parts) -> dict[str, Any]:
    """Return the fields, by dotted path, that decide how long a unit of work of a stage takes."""
    fields = {}
    for path in _DECISIVE[stage]:
        value: Any = parts
        for key in path.split("."):
            value = value[key]
        free = {f"{path}.{name}" for name in _FREE.get(path, "").split()}
        fields |= {field: leaf for field, leaf in flatten(value, path) if field not in free}
    return fields


def _sources(parts: Parts, *only: str) -> dict[str, Any]:
    """Return where images and conversations come from, the size of a rendered dataset left out."""
    free = {f"images.source.{name}" for name in _FREE["images.source"].split()}
    fields = {}
    for name in only or ("images", "conversations"):
        fields |= dict(flatten(parts[name]["source"], f"{name}.source"))
    return {field: leaf for field, leaf in fields.items() if field not in free}
