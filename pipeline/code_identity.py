"""What a stage's code is, for its fingerprint: its module and all it imports inside the project.

The digest is taken from the syntax tree without docstrings, comments and formatting, so that a
cosmetic edit re-runs nothing and a real one re-runs exactly the stages that can notice it.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "model", "storage")

# Modules that decide where and how things run, or only declare values that the fingerprint holds
# anyway. They are injected into stages or hashed as data, so their code bears no identity.
INFRASTRUCTURE = frozenset(
    {
        "pipeline.code_identity",
        "pipeline.dag",
        "pipeline.errors",
        "pipeline.materialize",
        "pipeline.plan",
        "pipeline.presets",
        "pipeline.progress",
        "pipeline.recipe",
        "pipeline.recipe_parts",
        "pipeline.runs",
        "pipeline.settings",
        "pipeline.stage",
        "storage.artifacts",
        "storage.errors",
        "storage.filesystem",
        "storage.leases",
        "storage.manifest",
        "storage.readcache",
        "storage.transfer",
    }
)


def code_digests(module: str) -> dict[str, str]:
    """Return the digest of every project file that can shape what a module computes.

    Args:
        module: Dotted name, e.g. `pipeline.pretrain`.

    Returns:
        Digests by path relative to the project (`model/projectors.py`), sorted.
    """
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in INFRASTRUCTURE or path is None or path in seen:
            continue
        digest, imports = _read(path, (ROOT / path).stat().st_mtime_ns)
        seen[path] = digest
        waiting.extend(imports)
    return dict(sorted(seen.items()))


def _path(module: str) -> str | None:
    if module.split(".")[0] not in ROOMS:
        return None
    base = module.replace(".", "/")
    for candidate in (f"{base}.py", f"{base}/__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


@cache
def _read(path: str, _mtime: int) -> tuple[str, tuple[str, ...]]:
    tree = ast.parse((ROOT / path).read_bytes(), path)
    imports = tuple(sorted(set(_imports(tree))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:32], imports


def _drop_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    match node.body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            node.body = rest


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
