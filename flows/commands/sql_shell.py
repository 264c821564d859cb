"""`phivision sql` without a statement: a shell on the catalog, as read-only as one statement."""

import sys
from collections.abc import Callable
from contextlib import suppress

import pyarrow as pa

from pipeline.catalog.catalog import BULKY, Catalog
from storage.errors import StorageError
from storage.sql.queries import is_blank, refuse_writing

HELP = """\
end a statement with ;  it may take several lines
.views           names of all views
.schema [VIEW]   columns and types of a view, or of all views
.help            print this text
.quit            leave (as does Ctrl-D); Ctrl-C drops what was typed
SUMMARIZE VIEW;  prints statistics of each column"""


def shell(catalog: Catalog, show: Callable[[pa.Table], None]) -> None:
    """Read statements from the terminal until it ends; an error does not end the shell.

    Args:
        catalog: What to query.
        show: Prints a result.
    """
    run = catalog.run or (catalog.runs[0]["run"] if catalog.runs else "none yet")
    print(f"{catalog.store.uri} · run {run} · read-only · .help lists commands")
    _edit_lines(catalog)
    pending, well = "", True
    while True:
        try:
            line = _ask("   … " if pending else "sql> ")
        except EOFError:
            print()
            if sys.stdin.isatty():
                return
            if not is_blank(pending):  # as with one statement, the last needs no ;
                well &= _attempt(catalog, pending, show)
            if not well:
                raise SystemExit(1) from None
            return
        except KeyboardInterrupt:
            pending = ""
            print()
            continue
        if not pending and line.strip().startswith("."):
            if line.split()[0] in (".quit", ".exit"):
                return
            _command(catalog, line.split(), show)
            continue
        pending = f"{pending}\n{line}".strip()
        if pending.endswith(";"):
            well &= _attempt(catalog, pending, show)
            pending = ""


def _ask(prompt: str) -> str:
    return input(prompt if sys.stdin.isatty() else "")


def _attempt(catalog: Catalog, statement: str, show: Callable[[pa.Table], None]) -> bool:
    """Run one statement, and return whether it succeeded."""
    try:
        refuse_writing(statement)
        show(catalog.query(statement, printable=True))
    except StorageError as error:
        print(error)
        return False
    except KeyboardInterrupt:
        print("stopped")
    return True


def _command(catalog: Catalog, words: list[str], show: Callable[[pa.Table], None]) -> None:
    match words:
        case [".views"]:
            print(", ".join(catalog.views()))
        case [".schema"]:
            for view, columns in _columns(catalog).items():
                print(f"{view}({', '.join(columns)})")
        case [".schema", view] if view in catalog.views():
            _attempt(catalog, f"DESCRIBE {view};", show)
        case [".schema", view]:
            print(f"there is no view {view}; .views names all")
        case [".help"]:
            print(HELP)
        case _:
            print(f"unknown command {words[0]}\n{HELP}")


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
            found = sorted(word for word in known if word.lower().startswith(text.lower()))
            return found[state] if state < len(found) else None

        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
