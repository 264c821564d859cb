"""The part of a report about training: loss curves, experts, dropped records, cost."""

from collections.abc import Mapping, Sequence

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
_SCALES = ("learning_rate",)  # set by the recipe, so its curve would show nothing new
_LOSSES = {"loss": "training", "val_nll": "held-out images"}


def training_charts(training: Sequence[Row]) -> list[Chart]:
    """Return loss curves and the experts' usage of every training, then whatever else was kept."""
    charts = []
    for stage in dict.fromkeys(row["stage"] for row in training):
        series: dict[str, tuple[list[float], list[float]]] = {}
        for row in training:
            if row["stage"] == stage:
                xs, ys = series.setdefault(row["metric"], ([], []))
                xs.append(row["step"])
                ys.append(row["value"])
        losses = {n: s for n, s in series.items() if n in _LOSSES}
        experts = {n: s for n, s in series.items() if n.startswith("expert")}
        if losses:
            named = {_LOSSES[n]: s for n, s in losses.items()}
            charts.append(lines(f"{stage}: loss", named, "step", "nats per token"))
        if experts:
            short = {n.replace("_usage", "").replace("_", " "): s for n, s in experts.items()}
            charts.append(lines(f"{stage}: share of each expert", short, "step", "share"))
        others = sorted(series.keys() - losses.keys() - experts.keys() - set(_SCALES))
        charts += [lines(f"{stage}: {n}", {n: series[n]}, "step", n) for n in others]
    return charts


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
