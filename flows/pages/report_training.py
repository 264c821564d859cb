"""The part of a report about training: loss curves, experts, dropped records, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flows.example_scores import Row
from flows.pages.charts import Chart, Estimate, bars, lines
from storage.store.manifest import Manifest

# For the rate of a stage: the figure of its summary that counts its work.
_WORK = {
    "images": "images",
    "features": "images",
    "examples": "examples",
    "pretrain": "steps",
    "finetune": "steps",
    "evaluate": "predictions",
}
_TRAININGS = {"pretrain": "pretraining", "finetune": "finetuning"}
_LOSSES = {"loss": "training", "val_nll": "held-out images"}

Series = tuple[list[float], list[float]]  # steps and values


@dataclass(frozen=True)
class Curves:
    """What was kept of the trainings.

    Attributes:
        losses: Loss curves.
        others: The other curves: experts, gradient norm.
        figures: Training, name and value of what was measured once.
    """

    losses: list[Chart] = field(default_factory=list)
    others: list[Chart] = field(default_factory=list)
    figures: list[list[object]] = field(default_factory=list)


def training_curves(training: Sequence[Row]) -> Curves:
    """Return the curves of every training; the learning rates, which the recipe sets, are left out.

    Args:
        training: Rows of the `training` view, by step.
    """
    found = Curves()
    for stage in dict.fromkeys(row["stage"] for row in training):
        name = _TRAININGS.get(stage, stage)
        series: dict[str, Series] = {}
        for row in training:
            if row["stage"] == stage and not row["metric"].startswith("learning_rate"):
                xs, ys = series.setdefault(row["metric"], ([], []))
                xs.append(row["step"])
                ys.append(row["value"])
        curves = {n: each for n, each in series.items() if len(each[0]) > 1}
        singles = [[name, _title(n), series[n][1][0]] for n in series.keys() - curves.keys()]
        found.figures.extend(sorted(singles, key=str))
        losses = {label: curves.pop(n) for n, label in _LOSSES.items() if n in curves}
        experts = {_title(n): curves.pop(n) for n in list(curves) if n.startswith("expert")}
        if losses:
            found.losses.append(lines(f"Loss ({name})", losses, "step", "nats per token"))
        if experts:
            short = {label.removesuffix(" usage"): each for label, each in experts.items()}
            found.others.append(lines(f"Share of each expert ({name})", short, "step", "share"))
        for n, each in sorted(curves.items()):
            title = _title(n)
            found.others.append(lines(f"{title} ({name})", {title: each}, "step", title.lower()))
    return found


def _title(metric: str) -> str:
    return metric.replace("_", " ").capitalize()


def cost_rows(manifests: Mapping[str, Manifest], made: Sequence[str]) -> list[list[object]]:
    """Return what each stage cost when it was made: seconds, rate, bytes."""
    rows: list[list[object]] = []
    for stage, manifest in manifests.items():
        unit = _WORK.get(stage, "")
        amount = manifest.summary.get(unit)
        rate = ""
        if isinstance(amount, int) and manifest.seconds > 0:
            rate = f"{amount / manifest.seconds:,.1f} {unit}/s"
        size = sum(record.bytes for record in manifest.files) / 1e6
        status = "made" if stage in made else "cached"
        rows.append([stage, status, round(manifest.seconds, 1), rate, round(size, 1)])
    return rows


def cost_chart(manifests: Mapping[str, Manifest]) -> Chart:
    """Return the seconds that each stage took when it was made."""
    return bars(
        "Seconds per stage", [Estimate(s, m.seconds) for s, m in manifests.items()], "seconds"
    )


def drop_chart(drops: Sequence[Row]) -> Chart:
    """Return how many records were left out, by reason."""
    return bars(
        "Records left out, by reason",
        [Estimate(f"{row['kind']}: {row['reason']}", row["count"]) for row in drops],
        "records",
    )
