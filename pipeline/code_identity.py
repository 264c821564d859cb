"""What a stage's code is, for its fingerprint: its module and all it imports inside the project.

The digest is taken from the syntax tree without docstrings, comments and formatting, so that a
cosmetic edit re-runs nothing and a real one re-runs exactly the stages that can notice it. The
tree is written down by `_dump` and not by `ast.dump`, whose text changes with Python's minor
version: an upgrade of Python alone, or two machines with different ones, must not re-run anything.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "model", "storage")

# Modules that decide where and how things run, or only declare values that the fingerprint holds
# anyway. They are injected into stages or hashed as data, so their code bears no identity.
INFRASTRUCTURE = frozenset(
    {
        "model.encoder_table",
        "pipeline.adopt",
        "pipeline.backbone_parts",
        "pipeline.code_identity",
        "pipeline.dag",
        "pipeline.devices",
        "pipeline.errors",
        "pipeline.hub",
        "pipeline.hub_failures",
        "pipeline.materialize",
        "pipeline.plan",
        "pipeline.presets",
        "pipeline.processes",
        "pipeline.progress",
        "pipeline.recipe",
        "pipeline.recipe_parts",
        "pipeline.runs",
        "pipeline.settings",
        "pipeline.showcase",
        "pipeline.stage",
        "pipeline.throughput",
        "pipeline.tracking",
        "pipeline.wandb_logger",
        "storage.artifacts",
        "storage.clones",
        "storage.commits",
        "storage.download_cache",
        "storage.errors",
        "storage.filesystem",
        "storage.garbage",
        "storage.gathered",
        "storage.layout",
        "storage.leases",
        "storage.maintenance",
        "storage.manifest",
        "storage.mark",
        "storage.objects",
        "storage.partial",
        "storage.readcache",
        "storage.remote",
        "storage.remote_zip",
        "storage.retries",
        "storage.runs",
        "storage.spans",
        "storage.stamps",
        "storage.streams",
        "storage.subset",
        "storage.transfer",
        "storage.web",
        "storage.workspaces",
    }
)

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Known = dict[str, tuple[str, list[str]]]  # digest and imports, by hash of the source
_KEPT = 500  # sources remembered, several times as many as there are modules


def code_digests(module: str, root: Path = ROOT) -> dict[str, str]:
    """Return the digest of every project file that can shape what a module computes.

    Args:
        module: Dotted name, e.g. `pipeline.pretrain`.
        root: Folder of the packages.

    Returns:
        Digests by path relative to the project (`model/projectors.py`), sorted.
    """
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name, root)
        if name in INFRASTRUCTURE or path is None or path in seen:
            continue
        digest, imports = read_module((root / path).read_bytes(), name, path)
        seen[path] = digest
        waiting += [*imports, *(name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1))]
    return dict(sorted(seen.items()))


def read_module(source: bytes, name: str, path: str) -> tuple[str, list[str]]:
    """Return the digest of a module's source and the dotted names that it may import."""
    known = _remembered()
    key = hashlib.sha256(source + name.encode() + path.encode()).hexdigest()
    if key not in known:
        tree = ast.parse(source, path)
        package = name if path.endswith("/__init__.py") else name.rpartition(".")[0]
        imports = sorted(set(_imports(tree, package)))
        known[key] = hashlib.sha256("".join(_dump(tree)).encode()).hexdigest()[:32], imports
        _remember(known)
    return known[key]


def _path(module: str, root: Path) -> str | None:
    if module.split(".")[0] not in ROOMS:
        return None
    base = module.replace(".", "/")
    for candidate in (f"{base}.py", f"{base}/__init__.py"):
        if (root / candidate).is_file():
            return candidate
    return None


def _dump(node: object) -> Iterator[str]:
    """Yield a text of a syntax tree in which what is absent or cosmetic leaves no trace."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for field, value in ast.iter_fields(node):
            if isinstance(node, _Documented) and field == "body":
                value = _without_docstring(value)
            # New versions of Python add optional fields; `kind` is the u of u"text".
            if value is not None and value != [] and field not in ("kind", "type_comment"):
                yield f" {field}="
                yield from _dump(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _dump(item)
            yield ","
        yield "]"
    else:
        yield repr(node)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


# Parsing takes a third of `plan`'s second. Like Python's own byte code, what was found is kept
# beside the code, under a name that tells Python's version; it is keyed by the source's hash, so
# it can be missing or lost but not out of date.


def _memory() -> Path:
    return Path(cache_from_source(__file__)).with_suffix(".digests.json")


@cache
def _remembered() -> _Known:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        values = json.loads(_memory().read_bytes())
        return {str(key): (str(digest), list(names)) for key, (digest, names) in values.items()}
    return {}


def _remember(known: _Known) -> None:
    if sys.dont_write_bytecode:
        return
    path = _memory()
    temporary = path.with_suffix(f".{id(known):x}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dict([*known.items()][-_KEPT:])))
        temporary.replace(path)
