"""The part of a report about training: loss curves, experts, dropped records, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flows.example_scores import Row
from flows.pages.charts import Estimate, bars
from flows.pages.curves import Curve, lines
from flows.pages.vega import EXPERTS, RUNS, Chart
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
THIS = "this run"

Series = tuple[list[float], list[float]]  # steps and values


@dataclass(frozen=True)
class Curves:
    """What was kept of the trainings.

    Attributes:
        losses: Loss curves.
        others: The other curves: experts, gradient norm.
        figures: Training, name and value of what was measured once.
        same: Training, and a run beside which it is the very same.
    """

    losses: list[Chart] = field(default_factory=list)
    others: list[Chart] = field(default_factory=list)
    figures: list[list[object]] = field(default_factory=list)
    same: list[tuple[str, str]] = field(default_factory=list)


def training_curves(
    training: Sequence[Row], others: Mapping[str, Sequence[Row]] | None = None
) -> Curves:
    """Return the curves of every training; the learning rates, which the recipe sets, are left out.

    Args:
        training: Rows of the `training` view, by step.
        others: The same of runs whose curves are drawn into the same charts, by name.
    """
    shown, others = Curves(), others or {}
    colours = {run: RUNS[at % len(RUNS)] for at, run in enumerate((THIS, *others))}
    for stage in dict.fromkeys(row["stage"] for row in training):
        name = _TRAININGS.get(stage, stage)
        own = _series(training, stage)
        runs = {THIS: own}
        for run, rows in others.items():
            theirs = _series(rows, stage)
            if theirs == own:
                shown.same.append((name, run))
            elif theirs:
                runs[run] = theirs
        curves = [n for n, each in own.items() if len(each[0]) > 1]
        singles = [[name, _title(n), own[n][1][0]] for n in own.keys() - set(curves)]
        shown.figures.extend(sorted(singles, key=str))
        losses = {n: label for n, label in _LOSSES.items() if n in curves}
        experts = {n: _title(n).removesuffix(" usage") for n in curves if n.startswith("expert")}
        if losses:
            drawn = _curves(runs, losses, colours)
            shown.losses.append(lines(f"Loss ({name})", drawn, "step", "nats per token"))
        if experts:
            # Of this run only: four experts are enough.
            drawn, title = _curves({"": own}, experts, {"": ""}), f"Share of each expert ({name})"
            shown.others.append(lines(title, drawn, "step", "share", EXPERTS))
        for n in sorted(set(curves) - set(losses) - set(experts)):
            title = _title(n)
            drawn = _curves(runs, {n: title}, colours)
            shown.others.append(lines(f"{title} ({name})", drawn, "step", title.lower()))
    return shown


def _series(training: Sequence[Row], stage: str) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for row in training:
        if row["stage"] == stage and not row["metric"].startswith("learning_rate"):
            xs, ys = series.setdefault(row["metric"], ([], []))
            xs.append(row["step"])
            ys.append(row["value"])
    return series


def _curves(
    runs: Mapping[str, Mapping[str, Series]], names: Mapping[str, str], colours: Mapping[str, str]
) -> list[Curve]:
    return [
        Curve(label, *series[metric], run, colours[run])
        for run, series in runs.items()
        for metric, label in names.items()
        if metric in series
    ]


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
