"""SQL over Arrow tables and Parquet files, in a DuckDB without access to anything else."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import chain, count
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from storage.errors import StorageError
from storage.sql.patch_grid import add_patch_grid, shapes_of
from storage.tables import is_text

_BY_TEXT = frozenset({"query", "query_table"})  # functions that take a relation's name as text
_AGE = "age() with one argument"
_CONDITION = "SELECT 1 FROM x WHERE (\n{}\n)"

# Prefixes of types whose values Arrow or Python cannot hold: the year 290000, an infinite date, a
# month that is not a number of days, a time with its zone, numbers of more than 127 bits.
_TEXTS = ("date", "time", "interval", "uhugeint", "bignum", "bit")

Source = pa.Table | Sequence[Path]


class Database:
    """An in-memory DuckDB with named relations, closed to files, network and settings.

    Args:
        sources: Arrow tables, or Parquet files of one schema, by relation name.
        views: SQL of views over them, by name, created in order.
        macros: `CREATE MACRO` statements run before the views.
        threads: Threads DuckDB may use; its default is all cores.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        views: Mapping[str, str] | None = None,
        threads: int | None = None,
        macros: Sequence[str] = (),
    ) -> None:
        self._connection = duckdb.connect(":memory:")
        self._sources = {name: _relation(source) for name, source in sources.items()}
        self.names = [*self._sources, *(views or {})]
        for name, relation in self._sources.items():
            self._connection.register(name, relation)
        shapes = shapes_of([relation.schema for relation in self._sources.values()])
        if shapes:
            add_patch_grid(self._connection, shapes)
        for macro in macros:
            self._connection.execute(macro)
        for name, sql in (views or {}).items():
            self._connection.execute(f'CREATE VIEW "{name}" AS {sql}')
        if threads is not None:
            self._connection.execute("SET threads = ?", [threads])
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def query(self, sql: str, parameters: Mapping[str, object] | None = None) -> pa.Table:
        """Return the result of one statement; parameters are bound as `$name`.

        Raises:
            StorageError: DuckDB refuses the statement; its message is passed on.
        """
        try:
            result = self._connection.sql(sql, params=dict(parameters) if parameters else None)
            return pa.table({}) if result is None else _named_apart(result.to_arrow_table())
        except duckdb.Error as error:
            raise StorageError(f"SQL: {error}") from None

    def read_only(self, sql: str) -> pa.Table:
        """Return the result of exactly one statement that only reads.

        Raises:
            StorageError: It is not a single SELECT, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN.
        """
        refuse_writing(sql)
        return self.query(sql)

    def printable(self, sql: str) -> pa.Table:
        """Return what `read_only` does, with dates, times and the like as text from DuckDB.

        Raises:
            StorageError: It is not a single SELECT, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN.
        """
        refuse_writing(sql)
        try:
            result = self._connection.sql(sql)
            columns = [_printable(kind) for kind in result.types]
            if any(columns):
                casts = (
                    f"{f'CAST(#{at} AS {text})' if text else f'#{at}'} AS {_quoted(name)}"
                    for at, (name, text) in enumerate(zip(result.columns, columns, strict=True), 1)
                )
                result = result.project(", ".join(casts))
            return _named_apart(result.to_arrow_table())
        except duckdb.Error as error:
            raise StorageError(f"SQL: {error}") from None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> "Database":
        """Return itself."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Close the connection."""
        self.close()


def refuse_writing(sql: str) -> None:
    """Raise unless a text is exactly one statement that only reads.

    Raises:
        StorageError: It is several statements, one that writes, or not SQL.
    """
    kinds = _kinds(sql)
    if kinds == ["EXPLAIN"]:
        kinds = _kinds(_explained(sql))  # EXPLAIN ANALYZE runs what it explains
    if kinds == ["MULTI"]:
        raise StorageError(
            "a PIVOT without listed values creates a type, and the catalog is read-only",
            "name the values: PIVOT t ON c IN ('a', 'b') USING count(*)",
        )
    if kinds != ["SELECT"]:  # DESCRIBE, SUMMARIZE and SHOW are parsed as SELECT
        raise StorageError(
            "exactly one SELECT, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN can be run here",
            "the catalog is read-only",
        )


def boxed(table: pa.Table, width: int, rows: int) -> str:
    """Return a result as DuckDB prints it, within `width` characters; some columns are left out."""
    text = io.StringIO()
    with duckdb.connect(":memory:") as connection, redirect_stdout(text):
        connection.from_arrow(table).show(max_width=width, max_rows=rows, null_value="")
    return text.getvalue().rstrip("\n")


def is_blank(sql: str) -> bool:
    """Return whether a text has nothing but whitespace and comments."""
    return is_text(sql) and all(
        kind == duckdb.token_type.comment for _, kind in duckdb.tokenize(sql)
    )


def tables_of(sql: str) -> set[str] | None:
    """Return the relations that one statement reads, in lower case, its own WITH names among them.

    None where unknown: it is not SQL, is a PIVOT, or takes a relation's name from a text.
    """
    if not is_text(sql):
        return None
    with duckdb.connect(":memory:") as connection:
        rows = connection.execute("SELECT json_serialize_sql(?)", [_explained(sql)]).fetchall()
    nodes = list(_nodes(json.loads(rows[0][0])))
    if nodes[0]["error"] or any(node.get("function_name") in _BY_TEXT for node in nodes):
        return None
    tables = [node for node in nodes if node.get("type") in {"BASE_TABLE", "SHOW_REF"}]
    return {str(node["table_name"]).strip('"').lower() for node in tables}  # SHOW quotes some


def predicate_fault(predicate: str) -> str:
    """Return why a text is not a deterministic SQL predicate, "" if it is one.

    A subquery could read other relations, and a function such as random() gives other rows in
    each run. Columns and types are not checked: they need the relation.
    """
    if not is_text(predicate):
        return "it is not valid Unicode"
    with duckdb.connect(":memory:") as connection:
        try:
            duckdb.SQLExpression(predicate)  # one expression and nothing after it
            shape = connection.execute(
                "SELECT json_serialize_sql(?)", [_CONDITION.format(predicate)]
            ).fetchall()[0][0]
            rows = connection.execute(
                "SELECT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
            ).fetchall()
        except duckdb.Error as error:
            return str(error).splitlines()[0]
    tree = json.loads(shape)
    if tree["error"]:
        return str(tree["error_message"])
    kinds, names = set(), set()
    for node in _nodes(tree):
        kinds.add(node.get("class"))
        names |= {_function(node)}
        names |= {str(name).lower() for name in node.get("column_names", ())}
    if "SUBQUERY" in kinds:
        return "a subquery is not allowed"
    if "STAR" in kinds:
        return "a star is not allowed: name the columns"
    restless = sorted(names & {_AGE, *(name for (name,) in rows)})
    return f"{restless[0]} gives another result in each run" if restless else ""


def _function(node: Mapping[str, Any]) -> str:
    """Return the name of a node's function, "" where it has none."""
    name = str(node.get("function_name", "")).lower()
    arguments = node.get("arguments") or node.get("children") or ()  # the latter before DuckDB 2
    # DuckDB calls both forms of age() consistent; with one argument it counts from today.
    return _AGE if name == "age" and len(arguments) == 1 else name


def _nodes(value: object) -> Iterator[dict[str, Any]]:
    """Yield every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def _kinds(sql: str) -> list[str]:
    if not is_text(sql):
        raise StorageError("SQL: the text is not valid Unicode", "remove its lone surrogate")
    with duckdb.connect(":memory:") as connection:
        try:
            return [statement.type.name for statement in connection.extract_statements(sql)]
        except duckdb.Error as error:
            raise StorageError(f"SQL: {error}") from None


def _explained(sql: str) -> str:
    """Return the statement after EXPLAIN or EXPLAIN ANALYZE, any other one unchanged."""
    starts = [at for at, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    raw = sql.encode()  # the tokenizer counts bytes
    for word in (b"EXPLAIN", b"ANALYZE"):
        if len(starts) < 2 or not raw[starts[0] :].upper().startswith(word):
            break
        starts = starts[1:]
    return raw[starts[0] if starts else 0 :].decode()


def _named_apart(table: pa.Table) -> pa.Table:
    """Return a result with unique column names, numbered as DuckDB does: `a`, `a_1`."""
    names: list[str] = []
    for name in table.column_names:
        numbered = (f"{name}_{number}" for number in count(1))
        names.append(next(n for n in chain([name], numbered) if n not in names))
    return table.rename_columns(names)


def _printable(kind: Any) -> str | None:
    """Return a type with VARCHAR for what only DuckDB can print, None where nothing needs it."""
    if kind.id.startswith(_TEXTS):
        return "VARCHAR"
    if kind.id not in {"list", "array", "struct", "map", "union"}:
        return None
    parts = kind.children[:1] if kind.id == "array" else kind.children  # its size comes second
    texts = [_printable(part) for _, part in parts]
    if not any(texts):
        return None
    inner = [text or str(part) for text, (_, part) in zip(texts, parts, strict=True)]
    match kind.id:
        case "list":
            return f"{inner[0]}[]"
        case "array":
            return f"{inner[0]}[{kind.children[1][1]}]"
        case "map":
            return f"MAP({', '.join(inner)})"
        case "struct":
            fields = zip((name for name, _ in parts), inner, strict=True)
            return f"STRUCT({', '.join(f'{_quoted(name)} {text}' for name, text in fields)})"
    return "VARCHAR"


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _relation(source: Source) -> Any:
    if isinstance(source, pa.Table):
        return source
    return ds.dataset([str(path) for path in source], format="parquet")
