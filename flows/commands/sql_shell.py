"""`phivision sql` without a statement: a shell on the catalog, as read-only as one statement."""

import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from flows.commands.sql import print_as, write_as
from pipeline.catalog.catalog import BULKY, Catalog
from storage.errors import StorageError
from storage.sql.queries import is_blank, refuse_writing

HELP = """\
end a statement with ;  it may take several lines
.views           names of all views
.schema [VIEW]   columns and types of a view, or of all views
.mode MODE       print results as table, csv or json
.export FILE     run the last statement again into a .csv, .json or .parquet file
.help            print this text
.quit            leave (as does Ctrl-D); Ctrl-C drops what was typed
SUMMARIZE VIEW;  prints statistics of each column"""
MODES = ("table", "csv", "json")
KEPT = 1000  # lines of history


class Shell:
    """Reads statements and commands from the terminal; an error does not end it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.mode = "table"
        self.last = ""  # the last statement that succeeded
        self.well = True  # whether all have

    def loop(self) -> None:
        """Read and answer until the input ends.

        Raises:
            SystemExit: The input was no terminal, and a statement of it failed.
        """
        run = self.catalog.run or (self.catalog.runs[0]["run"] if self.catalog.runs else "none yet")
        print(f"{self.catalog.store.uri} · run {run} · read-only · .help lists commands")
        _edit_lines(self.catalog)
        pending = ""
        while True:
            try:
                line = _ask("   … " if pending else "sql> ")
            except EOFError:
                print()
                return self._end(pending)
            except KeyboardInterrupt:
                pending = ""
                print()
                continue
            if not pending and line.strip().startswith("."):
                if line.split()[0] in (".quit", ".exit"):
                    return None
                self._command(line.split(maxsplit=1))
                continue
            pending = f"{pending}\n{line}".strip()
            if pending.endswith(";"):
                self._attempt(pending)
                pending = ""

    def _end(self, pending: str) -> None:
        if sys.stdin.isatty():
            return
        if not is_blank(pending):  # as with one statement, the last needs no ;
            self._attempt(pending)
        if not self.well:
            raise SystemExit(1)

    def _attempt(self, statement: str) -> None:
        result = self._result(statement, printable=True)
        if result is not None:
            self.last = statement
            print_as(result, self.mode)

    def _result(self, statement: str, *, printable: bool) -> pa.Table | None:
        """Return what a statement gives; why it fails is printed."""
        try:
            refuse_writing(statement)
            return self.catalog.query(statement, printable=printable)
        except StorageError as error:
            print(error)
            self.well = False
        except KeyboardInterrupt:
            print("stopped")
        return None

    def _command(self, words: list[str]) -> None:
        match words:
            case [".views"]:
                print(", ".join(self.catalog.views()))
            case [".schema"]:
                for view, columns in _columns(self.catalog).items():
                    print(f"{view}({', '.join(columns)})")
            case [".schema", view]:
                self._describe(view)
            case [".mode", mode] if mode in MODES:
                self.mode = mode
            case [".mode", *_]:
                print(f"results are printed as {self.mode}; .mode takes {', '.join(MODES)}")
            case [".export", name]:
                self._export(Path(name).expanduser())
            case [".help"]:
                print(HELP)
            case _:
                print(f"unknown command {words[0]}\n{HELP}")

    def _describe(self, view: str) -> None:
        if view not in self.catalog.views():
            print(f"there is no view {view}; .views names all")
            return
        result = self._result(f"DESCRIBE {view};", printable=True)
        if result is not None:
            print_as(result, self.mode)

    def _export(self, file: Path) -> None:
        style = file.suffix.removeprefix(".")
        if style not in ("csv", "json", "parquet"):
            print(f"{file}: end its name with .csv, .json or .parquet")
            return
        if not self.last:
            print("run a statement first; .export writes the rows of the last one")
            return
        result = self._result(self.last, printable=style != "parquet")
        if result is None:
            return
        try:
            write_as(result, style, file)
        except OSError as error:
            print(f"{file}: {error.strerror}")
            self.well = False
        else:
            print(f"{len(result):,} rows in {file}")


def _ask(prompt: str) -> str:
    return input(prompt if sys.stdin.isatty() else "")


def _columns(catalog: Catalog) -> dict[str, list[str]]:
    """Return the columns of the views that can be opened without fetching gigabytes."""
    cheap = [name for name in catalog.views() if catalog.store.local or name not in BULKY]
    with catalog.open(names=cheap) as database:
        return {name: database.query(f"DESCRIBE {name}")[0].to_pylist() for name in database.names}


def _edit_lines(catalog: Catalog) -> None:
    """Give the terminal history and completion, where this Python has them."""
    if not sys.stdin.isatty():
        return
    with suppress(ImportError):
        import readline

        known: list[str] = []

        def complete(text: str, state: int) -> str | None:
            if not known:
                names = _columns(catalog)
                known.extend({*catalog.views(), *(c for n in names.values() for c in n)})
            matches = sorted(word for word in known if word.lower().startswith(text.lower()))
            return matches[state] if state < len(matches) else None

        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
        _keep_history()


def _keep_history() -> None:
    """Begin with the lines of earlier shells, and keep those of this one."""
    import atexit
    import readline

    from platformdirs import user_state_path

    file = user_state_path("phivision") / "sql_history"
    with suppress(OSError):  # none yet, or no place for one: a shell without a past
        readline.read_history_file(file)
    readline.set_history_length(KEPT)

    def write() -> None:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)

    atexit.register(write)
