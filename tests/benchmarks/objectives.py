"""Standard finetuning beside scheduled sampling at equal compute, on a finished run of the demo.

Run it from the repository root on a store that `phivision run` has filled:
`python tests/benchmarks/objectives.py .phivision`. It only reads the store. First the cost of a
step is measured, both methods in turn on the same batches, in processor time. Then the language
model is finetuned with each method and some training seeds, scheduled sampling for as many epochs
less as its step costs more, and each model captions and answers about the test images. CIDEr-D
and answer accuracy are means over the seeds; the interval of their difference is paired, over
redrawn images. Both trainings are shorter than the demo's, whose examples they see less often.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.objective_configs import ObjectiveConfig, ScheduledSamplingConfig, StandardConfig
from model.objectives import objective_loss
from pipeline.engine.processes import Files
from pipeline.engine.stage import InputArtifact, StageContext
from pipeline.evaluation import evaluate as stage
from pipeline.evaluation.evaluation_plan import plan_evaluation
from pipeline.evaluation.metrics import Metric, answer_metrics, caption_metrics
from pipeline.evaluation.scores import change, summarize
from pipeline.progress import ConsoleReporter
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from pipeline.training.assemble import load_pretrained
from pipeline.training.batches import TrainingBatches
from pipeline.training.finetune import finetune, prepare
from storage.store.artifacts import ArtifactStore

METHODS: Mapping[str, ObjectiveConfig] = {
    "standard": StandardConfig(replaced=0.0),
    "scheduled_sampling": ScheduledSamplingConfig(
        decay="linear", start_rate=1.0, end_rate=0.5, sharpness=1.0, passes=1
    ),
}
METRICS = ("cider_d", "answer_accuracy")
STAGES = ("images", "examples", "backbones", "features", "pretrain")


def inputs_of(uri: str) -> dict[str, InputArtifact]:
    """The newest artifacts of a store, as the stages see them."""
    store = ArtifactStore(uri, Path(uri) / "work" / "cache", 2**30)
    found = {name: next(iter(store.manifests(name)), None) for name in STAGES}
    if missing := [name for name, manifest in found.items() if manifest is None]:
        sys.exit(f"{uri} has no {', '.join(missing)}: phivision run --store {uri}")
    return {name: store.artifact(manifest) for name, manifest in found.items() if manifest}


def context_of(inputs: Mapping[str, InputArtifact], folder: Path) -> StageContext:
    """What surrounds a stage that writes below a folder."""
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    settings = Settings(store=str(folder), device="cpu", threads=1, wandb="disabled")
    return StageContext(inputs, folder / "out", folder / "scratch", settings, ConsoleReporter())


def cost(context: StageContext, recipe: Recipe, steps: int) -> float:
    """How often a standard step fits into one of scheduled sampling, in processor time."""
    part = recipe.finetune
    training = prepare(context, part, 0)
    vlm, took = training.vlm.train(), {name: list[float]() for name in METHODS}
    feed = TrainingBatches(
        training.training, batch=part.batch, micro_batch=part.micro_batch, seed=0
    )
    for step in range(steps):
        (micro,) = feed.step(step)
        for name in sorted(METHODS, reverse=bool(step % 2)):
            began = time.process_time()
            coins = torch.Generator().manual_seed(step)
            # In the middle of the schedule; what a step costs does not depend on the coins.
            found = objective_loss(
                METHODS[name], vlm, micro.batch, step=5, total_steps=10, generator=coins
            )
            found.loss.backward()
            vlm.zero_grad()
            took[name].append(time.process_time() - began)
    pairs = zip(took["scheduled_sampling"], took["standard"], strict=True)
    return statistics.median(ours / plain for ours, plain in pairs)


def answers(
    inputs: Mapping[str, InputArtifact], recipe: Recipe, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """Finetune and return what the model says about the test images."""
    context = context_of(inputs, folder)
    told = finetune(context, recipe.finetune, seed)
    name = recipe.finetune.objective.kind
    print(f"{name}, seed {seed}: {told['steps']} steps, val_nll {told['val_nll']}", flush=True)
    tuned = Files({p.relative_to(context.out).as_posix(): str(p) for p in _files(context.out)})
    plan = plan_evaluation(context, recipe.evaluate, recipe.seed)
    vlm = load_pretrained(tuned.directory("lm"), tuned)
    rows = stage.predict(plan, vlm, [*plan.captions, *plan.questions], ["real"])["real"]
    for row in rows:
        if row["kind"] == "caption":
            plan.objects.judge(row)
    return rows


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def measured(rows: Sequence[dict[str, Any]]) -> dict[str, Metric]:
    """The two metrics of the rows of all seeds together: each seed weighs alike."""
    by_kind = [[row for row in rows if row["kind"] == kind] for kind in ("caption", "answer")]
    found = [*caption_metrics(by_kind[0]), *answer_metrics(by_kind[1])]
    return {each.metric: each for each in found if each.metric in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("store", help="folder of a finished run of the demo")
    parser.add_argument("--epochs", type=float, default=0.8, help="of standard training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="steps that the cost is measured in")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe, inputs = preset("demo"), inputs_of(given.store)
    with tempfile.TemporaryDirectory() as name:
        more = cost(context_of(inputs, Path(name) / "cost"), recipe, given.steps)
        epochs = {"standard": given.epochs, "scheduled_sampling": round(given.epochs / more, 3)}
        print(f"a step of scheduled sampling costs {more:.2f} standard ones; epochs {epochs}")
        found: dict[str, dict[str, Metric]] = {}
        for method, objective in METHODS.items():
            part = recipe.finetune.model_copy(
                update={"objective": objective, "epochs": epochs[method]}
            )
            chosen = recipe.model_copy(update={"finetune": part})
            rows = [
                row
                for seed in range(given.seeds)
                for row in answers(inputs, chosen, seed, Path(name) / f"{method}-{seed}")
            ]
            found[method] = measured(rows)
    for metric in METRICS:
        before, after = (found[method][metric] for method in METHODS)
        values = [
            summarize(method, {"real": [each]}, recipe.evaluate.resamples, 0)[0]
            for method, each in zip(METHODS, (before, after), strict=True)
        ]
        (gain,) = change(metric, "finetune", before, after, recipe.evaluate.resamples, 0)
        shown = "  ".join(f"{v['stage']} {v['value']:.4f}" for v in values)
        print(
            f"{metric}: {shown}  scheduled sampling's gain {gain['value']:+.4f} "
            f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
        )


if __name__ == "__main__":
    main()
