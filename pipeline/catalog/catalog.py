"""The catalog: SQL views over the tables of committed artifacts, created at each connection."""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StorageError
from storage.features.patches import PatchTable
from storage.features.pooled import read_indexes
from storage.sql.queries import Database, Source, tables_of
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from storage.store.runs import read_runs
from storage.tables import read_table

# View → (stage whose artifact holds its rows, pattern of the files).
TABLES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "images": ("images", "images.parquet"),
        "captions": ("images", "captions.parquet"),
        "objects": ("images", "objects.parquet"),
        "files": ("images", "files-*.parquet"),
        "conversations": ("conversations", "conversations.parquet"),
        "examples": ("examples", "examples.parquet"),
        "questions": ("examples", "questions.parquet"),
        "features": ("features", "index-*.parquet"),
        "patches": ("features", "patches-*.parquet"),
        "second_features": ("features", "second/index-*.parquet"),
        "second_patches": ("features", "second/patches-*.parquet"),
        "nearest": ("features", "nearest.parquet"),
        "clip_scores": ("features", "clip_scores.parquet"),
        "predictions": ("evaluate", "predictions.parquet"),
        "importance": ("evaluate", "importance.parquet"),
        "metrics_by_source": ("evaluate", "metrics_by_source.parquet"),
    }
)
_NO_TABLE = re.compile(r"Table with name (\S+) does not exist")
_LISTS = re.compile(r"\s*SHOW\b", re.IGNORECASE)  # statements about the views themselves
DROPS = ("images", "conversations", "examples")
TRAININGS = ("pretrain", "finetune")
SPEEDS = ("examples_per_second", "tokens_per_second", "mfu")  # in a training's summary
INDEXES = MappingProxyType({"patches": "features", "second_patches": "second_features"})
BULKY = ("files", *INDEXES)  # images and embeddings: not fetched unless asked for
# Columns that predictions get from other views → the view; they name its image and example.
_JOINED = MappingProxyType(
    {
        "example_id": "questions",
        "sha256": "images",
        "file_name": "images",
        "width": "images",
        "height": "images",
    }
)
_RUNS = pa.schema(
    [
        ("run", pa.string()),
        ("created", pa.timestamp("ms", tz="UTC")),
        ("seconds", pa.float64()),
        ("made", pa.list_(pa.string())),
        ("recipe", pa.string()),
    ]
)
_ARTIFACTS = pa.schema(
    [
        ("stage", pa.string()),
        ("fingerprint", pa.string()),
        ("digest", pa.string()),
        ("created", pa.timestamp("ms", tz="UTC")),
        ("seconds", pa.float64()),
        ("files", pa.int64()),
        ("bytes", pa.int64()),
        ("summary", pa.string()),
    ]
)


class Catalog:
    """SQL over a store; by default over the artifacts of its latest run.

    Args:
        store: The store.
        run: Name of a run whose artifacts the views show; the latest one if omitted.

    Raises:
        StorageError: There is no run of that name.
    """

    def __init__(self, store: ArtifactStore, run: str | None = None) -> None:
        self.store = store
        self.runs = read_runs(store)
        if run is not None and run not in {record["run"] for record in self.runs}:
            raise StorageError(f"there is no run '{run}'", "`phivision runs` lists them")
        self.run = run
        self._manifests: dict[str, Manifest | None] = {}

    def open(self, sql: str | None = None, names: Sequence[str] | None = None) -> Database:
        """Return a read-only database with the views that a statement mentions (or all).

        Files are fetched only for those views, so a query over captions never touches gigabytes
        of patches.

        Args:
            sql: The statement; a view that it mentions must have rows.
            names: Views to open instead, each only where it has rows.

        Raises:
            StorageError: The statement mentions a view whose stage has not run yet.
        """
        wanted = self._mentioned(sql) if names is None else names
        sources: dict[str, Source] = {}
        for name in wanted:
            source = self.source(name)
            if source is not None:
                if (
                    name in INDEXES.values()
                    and isinstance(source, list)
                    and "pooled" in (sql or "")
                ):
                    source = read_indexes(source)  # the one column that is slow to decode
                sources[name] = source
            elif sql is not None and not _LISTS.match(sql):
                raise self._empty(name)
        return Database(sources)

    def _empty(self, name: str) -> StorageError:
        if name.startswith("second_") and self.manifest("features"):
            return StorageError(
                f"the view {name} is empty: the embeddings are of one encoder",
                "set backbones.second_name for a second one",
            )
        return StorageError(
            f"the view {name} is empty: its stage has not run yet in {self.store.uri}",
            "`phivision run` fills it",
        )

    def query(self, sql: str, *, printable: bool) -> pa.Table:
        """Return the result of a statement that only reads.

        Raises:
            StorageError: The statement is wrong; for a misspelt view the nearest one is named.
        """
        try:
            with self.open(sql) as database:
                return database.printable(sql) if printable else database.read_only(sql)
        except StorageError as error:
            missing = _NO_TABLE.search(str(error))
            if missing is None:
                raise
            near = get_close_matches(missing[1].lower(), self.views(), n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else f"views: {', '.join(self.views())}"
            raise StorageError(f"there is no view {missing[1]}", remedy) from None

    def _mentioned(self, sql: str | None) -> list[str]:
        names = self.views()
        if sql is None:
            return names
        if _LISTS.match(sql):
            return [name for name in names if self.store.local or name not in BULKY]
        mentioned = tables_of(sql)
        if mentioned is None:
            mentioned = set(re.findall(r"\w+", sql.lower()))
        return [name for name in names if name in mentioned]

    def views(self) -> list[str]:
        """Return the names of all views."""
        return [*TABLES, "drops", "training", "metrics", "runs", "artifacts"]

    def manifest(self, stage: str) -> Manifest | None:
        """Return the artifact of a stage that the views show: of the run, else the newest."""
        if stage not in self._manifests:
            self._manifests[stage] = self._find(stage)
        return self._manifests[stage]

    def _find(self, stage: str) -> Manifest | None:
        wanted = self.run or (self.runs[0]["run"] if self.runs else None)
        for record in self.runs:
            if record["run"] == wanted and stage in record["stages"]:
                manifest = self.store.find(stage, record["stages"][stage]["fingerprint"])
                if manifest is not None:
                    return manifest
        if self.run is not None:
            return None
        return next(iter(self.store.manifests(stage)), None)

    def source(self, name: str) -> Source | None:
        """Return the rows of a view, as a table or as files; None where there are none yet."""
        match name:
            case "drops":
                return _concat([self._paths(s, "drops.parquet") for s in DROPS])
            case "training":
                return self._training()
            case "metrics":
                return self._metrics()
            case "predictions":
                return self._predictions()
            case "runs":
                return _RUNS.empty_table() if not self.runs else self._run_table()
            case "artifacts":
                return self._artifact_table()
            case "patches" | "second_patches":
                pairs = (self.paths(INDEXES[name]), self.paths(name))
                files = list(zip(*pairs, strict=True))
                return PatchTable(files).rows() if files else None
        return self.paths(name) or None

    def paths(self, name: str) -> list[Path]:
        """Return the files of a view of `TABLES`, in order; none where its stage has not run."""
        return self._paths(*TABLES[name])

    def _paths(self, stage: str, pattern: str) -> list[Path]:
        manifest = self.manifest(stage)
        return self.store.artifact(manifest).paths(pattern) if manifest else []

    def _metrics(self) -> pa.Table | None:
        """Return the metrics of all runs, with the columns that their tables have."""
        parts = []
        for record in self.runs:
            evaluated = record["stages"].get("evaluate")
            manifest = self.store.find("evaluate", evaluated["fingerprint"]) if evaluated else None
            if manifest is not None:
                table = read_table(self.store.artifact(manifest).path("metrics.parquet"))
                names = pa.array([record["run"]] * len(table), pa.string())
                parts.append(table.add_column(0, "run", names))
        return pa.concat_tables(parts, promote_options="permissive") if parts else None

    def _predictions(self) -> Source | None:
        """Return the predictions, each with the file, content and example that it is about."""
        paths = self.paths("predictions")
        joined = {name: self.paths(name) for name in ("images", "questions")}
        if not paths or not all(joined.values()):
            return paths or None
        known = pq.read_schema(paths[0]).names
        columns = [f"{view}.{name}" for name, view in _JOINED.items() if name not in known]
        with Database({"rows": paths, **joined}) as database:
            return database.query(
                f"SELECT rows.*, {', '.join(columns)} FROM rows "  # noqa: S608 - our own names
                "LEFT JOIN images USING (image_id) LEFT JOIN questions USING (question_id) "
                "ORDER BY prediction_id"
            )

    def _training(self) -> pa.Table | None:
        parts = []
        for stage in TRAININGS:
            for path in self._paths(stage, "training.parquet"):
                figures = read_table(path)
                table = pa.concat_tables([figures, self._speed(stage, figures)])
                names = pa.array([stage] * len(table), pa.string())
                parts.append(table.add_column(0, "stage", names))
        return pa.concat_tables(parts) if parts else None

    def _speed(self, stage: str, figures: pa.Table) -> pa.Table:
        """Return how fast a training was, as rows of its last step.

        They are in the manifest, not in the artifact, because no two trainings run equally fast.
        """
        manifest = self.manifest(stage)
        summary = manifest.summary if manifest else {}
        rows = [
            {"step": summary["steps"], "metric": name, "value": summary[name]}
            for name in SPEEDS
            if name in summary
        ]
        return pa.Table.from_pylist(rows, schema=figures.schema)

    def _run_table(self) -> pa.Table:
        rows = [
            {
                "run": record["run"],
                "created": int(record["created"] * 1000),
                "seconds": record["seconds"],
                "made": record["made"],
                "recipe": json.dumps(record["recipe"]),
            }
            for record in self.runs
        ]
        return pa.Table.from_pylist(rows, schema=_RUNS)

    def _artifact_table(self) -> pa.Table:
        stages = {name.rsplit("/", 1)[-1] for name in self.store.list("manifests")}
        rows = [
            {
                "stage": manifest.stage,
                "fingerprint": manifest.fingerprint,
                "digest": manifest.digest,
                "created": int(manifest.created * 1000),
                "seconds": manifest.seconds,
                "files": len(manifest.files),
                "bytes": sum(record.bytes for record in manifest.files),
                "summary": json.dumps(manifest.summary),
            }
            for stage in sorted(stages)
            for manifest in self.store.manifests(stage)
        ]
        return pa.Table.from_pylist(rows, schema=_ARTIFACTS)


def _concat(groups: list[list[Path]]) -> list[Path] | None:
    return [path for group in groups for path in group] or None
