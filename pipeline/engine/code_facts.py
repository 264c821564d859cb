"""What one source file defines and imports, read from its syntax tree and cached.

Parsing takes a third of the second that `plan` takes. Like Python's byte code, the facts are cached
beside the code, in a file named after Python's version. They are keyed by the hashes of the source
and of this file, so the cache can be missing but never out of date.
"""

import ast
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Set
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, NamedTuple

EFFECTS = ""  # key of a module's import effects: what it does besides defining names
_KEPT = 500  # cached sources, several times as many as there are modules

# The texts of the errors in these modules are for users and never enter an artifact.
_ERRORS = frozenset({"pipeline.errors", "model.errors"})
_PROGRESS = frozenset({"say", "track"})  # methods of a reporter
_Import = ast.Import | ast.ImportFrom
_Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Binding = _Defined | _Import | ast.Assign | ast.AnnAssign | ast.AugAssign


class DefinitionFacts(NamedTuple):
    """One name that a module defines.

    Attributes:
        digest: Of its syntax tree.
        names: The names that it uses, `name` or `name.attribute`, sorted.
    """

    digest: str
    names: list[str]


class Facts(NamedTuple):
    """What a module's source defines and imports.

    Attributes:
        definitions: Its functions, classes and constants, and `EFFECTS`.
        imports: What each imported name comes from: module, and the name in it or "".
        modules: Dotted names that it may import.
    """

    definitions: dict[str, DefinitionFacts]
    imports: dict[str, list[tuple[str, str]]]
    modules: list[str]


def read_facts(source: bytes, module: str, path: str) -> Facts:
    """Return what a module's source defines and imports.

    Args:
        source: Its text.
        module: Its dotted name.
        path: Its file, for messages and to recognize a package by `__init__.py`.
    """
    tree = ast.parse(source, path)
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    imports: dict[str, list[tuple[str, str]]] = defaultdict(list)
    modules = set()
    for name, origin, original in _imports(tree, package):
        imports[name].append((origin, original))
        modules |= {origin, f"{origin}.{original}"} if original else {origin}
    parts: dict[str, list[_Text]] = defaultdict(list)
    errors = {name for name, of in imports.items() if all(home in _ERRORS for home, _ in of)}
    for statement in _run(tree.body):
        text = _Text(statement, errors)
        names = _bound(statement)
        # A loop or a `try:` may do more than define names.
        if not names or not isinstance(statement, _Binding):
            names = [*names, EFFECTS]
        for name in names:
            if not isinstance(statement, _Import):
                parts[name].append(text)
    definitions = {name: _joined(texts) for name, texts in parts.items()}
    return Facts(
        definitions, {name: sorted(set(of)) for name, of in imports.items()}, sorted(modules)
    )


def _joined(texts: list["_Text"]) -> DefinitionFacts:
    written = "".join("".join(text.written) for text in texts)
    names = sorted({name for text in texts for name in text.names})
    return DefinitionFacts(hashlib.sha256(written.encode()).hexdigest()[:32], names)


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name that each import binds, the module, and the name in it or ""."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, base, alias.name


def _bound(statement: ast.stmt) -> list[str]:
    """Return the names that a module's statement defines, none if it only has side effects."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import() | ast.ImportFrom():
            return [alias.asname or alias.name for alias in statement.names]
    inner = [node for node in ast.iter_child_nodes(statement) if isinstance(node, ast.stmt)]
    stored = [
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    return list(dict.fromkeys([*stored, *(name for node in inner for name in _bound(node))]))


def _run(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a block that run: no docstrings, nothing for type checkers."""
    for statement in body:
        match statement:
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
                yield from _run(otherwise)
            case _:
                yield statement


class _Text:
    """A syntax tree as text, without the parts that affect no result, and the names in it.

    Args:
        tree: A statement.
        errors: Names of errors whose messages only users see.
    """

    def __init__(self, tree: ast.AST, errors: Set[str]) -> None:
        self._errors = errors
        self.written: list[str] = []
        self.names: set[str] = set()
        self._owners: set[int] = set()  # name nodes already recorded with their attribute
        self._in_class = False
        self._write(tree)

    def _write(self, node: Any) -> None:
        match node:
            case ast.AST():
                self._note(node)
                self._write_node(node)
            case [ast.stmt(), *_]:
                # Imports are recorded separately: see `Facts.imports`.
                self._write_list([s for s in _run(node) if not isinstance(s, _Import)])
            case list():
                self._write_list(node)
            case _:
                self.written.append(repr(node))

    def _write_list(self, items: list[Any]) -> None:
        self.written.append("[")
        for item in items:
            self._write(item)
            self.written.append(",")
        self.written.append("]")

    def _write_node(self, node: ast.AST) -> None:
        outside = self._in_class
        self._in_class = isinstance(node, ast.ClassDef)
        self.written.append(f"({type(node).__name__}")
        for field, value in ast.iter_fields(node):
            # New versions of Python add optional fields; `kind` is the u of u"text".
            if value is None or value == [] or field in ("kind", "type_comment"):
                continue
            if field in ("annotation", "returns") and not (outside and field == "annotation"):
                self.names |= _names_of_type(value)
            elif not _is_speech(node, field):
                self.written.append(f" {field}=")
                self._write(self._speechless(value) if isinstance(node, ast.Raise) else value)
        self.written.append(")")
        self._in_class = outside

    def _speechless(self, raised: object) -> object:
        """Return an exception without its message, where only users see the message."""
        match raised:
            case ast.Call(func=ast.Name(id=name)) if name in self._errors:
                return raised.func
        return raised

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.Attribute(value=ast.Name(id=name) as owner, attr=attribute):
                self.names.add(f"{name}.{attribute}")
                self._owners.add(id(owner))
            case ast.Name(id=name) if id(node) not in self._owners:
                self.names.add(name)


def _names_of_type(annotation: ast.expr) -> set[str]:
    """Return the names in an annotation: it affects no result, but its methods may be called."""
    names = set()
    for node in ast.walk(annotation):
        match node:
            case ast.Name(id=name):
                names.add(name)
            case ast.Constant(value=str() as text) if text.isidentifier():
                names.add(text)
    return names


def _is_speech(node: ast.AST, field: str) -> bool:
    """Whether a field holds the text of a progress message."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in _PROGRESS and field in ("args", "keywords")
    return False


def remembered_facts(source: bytes, module: str, path: str) -> Facts:
    """Return the same as `read_facts`, from the cache if this source was read before."""
    known = _remembered()
    key = hashlib.sha256(_own_hash() + source + module.encode() + path.encode()).hexdigest()
    if key not in known:
        known[key] = read_facts(source, module, path)
        _remember(known)
    return known[key]


@cache
def _own_hash() -> bytes:
    return hashlib.sha256(Path(__file__).read_bytes()).digest()


def _memory() -> Path:
    return Path(cache_from_source(__file__)).with_suffix(".facts.json")


@cache
def _remembered() -> dict[str, Facts]:
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        values = json.loads(_memory().read_bytes())
        return {str(key): _facts(*value) for key, value in values.items()}
    return {}


def _facts(definitions: Any, imports: Any, modules: Any) -> Facts:
    known = {str(name): DefinitionFacts(*each) for name, each in definitions.items()}
    origins = {str(name): [(str(m), str(n)) for m, n in of] for name, of in imports.items()}
    return Facts(known, origins, [str(name) for name in modules])


def _remember(known: dict[str, Facts]) -> None:
    if sys.dont_write_bytecode:
        return
    path = _memory()
    temporary = path.with_suffix(f".{id(known):x}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dict([*known.items()][-_KEPT:])))
        temporary.replace(path)
