"""A stage's code, for its fingerprint: its function and every definition it can reach.

A definition (a function, a class, a constant) is identified by its syntax tree and by what the
names in it refer to. No path enters a fingerprint: a file can be moved, and code that a stage does
not reach can be edited, without the stage running again. The same holds for all that affects no
result: docstrings, comments, formatting, annotations of functions, error and progress messages.

`pipeline.engine.code_facts` serializes the tree, not `ast.dump`, whose output changes with Python's
minor version: an upgrade of Python alone, or two machines with different versions, must not re-run
anything.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from pipeline.engine.code_facts import EFFECTS, Facts, remembered_facts

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "model", "storage")

# Packages and modules that decide where and how stages run, or only declare values that the
# fingerprint holds anyway. They are injected into stages or hashed as data, so their code is not
# part of an identity.
INFRASTRUCTURE = (
    "model.encoder_table",
    "model.errors",
    "pipeline.engine",
    "pipeline.errors",
    "pipeline.hub",
    "pipeline.progress",
    "pipeline.recipe.presets",
    "pipeline.recipe.recipe",
    "pipeline.recipe.small_presets",
    "pipeline.settings",
    "pipeline.training.observers",
    "storage.clones",
    "storage.clouds",
    "storage.errors",
    "storage.fetch",
    "storage.filesystem",
    "storage.layout",
    "storage.store",
)

# Here only the types of fields are followed: a stage calls the methods of what a recipe names.
DECLARATIONS = frozenset(
    f"pipeline.recipe.{name}" for name in ("backbone_parts", "data_sources", "fields", "parts")
)

Definition = tuple[str, str]  # module and name


def code_digests(
    module: str, function: str, root: Path = ROOT, also: Iterable[Definition] = ()
) -> dict[str, str]:
    """Return the digest of what a function can reach in each file of the project.

    Args:
        module: Dotted name, e.g. `pipeline.training.pretrain`.
        function: Its name in that module.
        root: Folder of the packages.
        also: Functions that it looks up by the recipe, without an import, as module and name.

    Returns:
        Digests by path relative to the project (`model/projectors.py`), sorted.
    """
    project = _ours() if root == ROOT else _Project(root)
    reached = _reachable(project, [(module, function), *also])
    homes = Counter(name for _, name in reached)
    files: dict[str, set[str]] = defaultdict(set)
    for home, name in reached:
        if home not in DECLARATIONS:
            files[project.path(home)].add(project.digest(home, name, homes))
    return {path: _sha(sorted(files[path])) for path in sorted(files)}


@cache
def _ours() -> "_Project":
    """Return this project, read once: a process keeps the code that it has loaded."""
    return _Project(ROOT)


def _is_infrastructure(module: str) -> bool:
    return module in INFRASTRUCTURE or module.startswith(tuple(f"{p}." for p in INFRASTRUCTURE))


def _sha(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _reachable(project: "_Project", functions: Iterable[Definition]) -> set[Definition]:
    """Return all definitions that functions can reach, and their modules' import effects."""
    seen: set[Definition] = set()
    imported: set[str] = set()
    waiting = [function for function in functions if project.has(function[0])]
    while waiting:
        home, name = waiting.pop()
        if (home, name) in seen:
            continue
        if name in project.facts(home).definitions:
            seen.add((home, name))
            waiting += [target for _, target in project.references(home, name)]
        if home not in imported:
            imported.add(home)
            waiting += [(other, EFFECTS) for other in (home, *project.imports(home))]
    return seen


class _Project:
    """The modules of a project, and what a name in one of them refers to."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._facts: dict[str, Facts] = {}
        self._paths: dict[str, str] = {}
        self._imports: dict[str, list[str]] = {}
        self._references: dict[Definition, list[tuple[str, Definition]]] = {}

    def has(self, module: str) -> bool:
        """Return whether this is a module of the project whose code enters fingerprints."""
        package = module.partition(".")[0]
        return package in PACKAGES and not _is_infrastructure(module) and self._find(module)

    def _find(self, module: str) -> bool:
        if module not in self._paths:
            base = module.replace(".", "/")
            candidates = (f"{base}.py", f"{base}/__init__.py")
            paths = (path for path in candidates if (self._root / path).is_file())
            self._paths[module] = next(paths, "")
        return bool(self._paths[module])

    def path(self, module: str) -> str:
        """Return the module's file, relative to the root."""
        return self._paths[module] if self._find(module) else ""

    def facts(self, module: str) -> Facts:
        """Return what the module's source defines and imports."""
        if module not in self._facts:
            path = self.path(module)
            self._facts[module] = remembered_facts((self._root / path).read_bytes(), module, path)
        return self._facts[module]

    def imports(self, module: str) -> list[str]:
        """Return the modules that are imported with this one: those it names, and packages."""
        if module not in self._imports:
            named = [name.split(".") for name in (module, *self.facts(module).modules)]
            every = {".".join(parts[: end + 1]) for parts in named for end in range(len(parts))}
            self._imports[module] = sorted(filter(self.has, every))
        return self._imports[module]

    def references(self, module: str, name: str) -> list[tuple[str, Definition]]:
        """Return the project's names that a definition uses, each with what it refers to.

        Names of other libraries and of infrastructure are left out.
        """
        if (module, name) not in self._references:
            self._references[module, name] = [
                (spelled, target)
                for spelled in self.facts(module).definitions[name].names
                for target in self._resolve(module, spelled)
            ]
        return self._references[module, name]

    def _resolve(self, module: str, spelled: str) -> Iterator[Definition]:
        first, _, attribute = spelled.partition(".")
        facts = self.facts(module)
        if first in facts.definitions:
            yield module, first
        # A name can be both, where an import is part of a statement such as `try:`.
        for source, original in facts.imports.get(first, ()):
            yield from self._imported(source, original, attribute)

    def _imported(self, source: str, original: str, attribute: str) -> Iterator[Definition]:
        inner = f"{source}.{original}" if original else source
        if self.has(inner):  # a module, used through one attribute or as a whole
            for name in [attribute] if attribute else self.facts(inner).definitions:
                yield from self._resolve(inner, name)
        elif original and self.has(source):
            yield from self._resolve(source, original)

    def digest(self, module: str, name: str, homes: Mapping[str, int]) -> str:
        """Return the digest of a definition and of what the names in it refer to.

        Args:
            module: Where it is.
            name: Its name.
            homes: How many definitions share each name. Where several do, the name is ambiguous
                and the digest of the definition is added.
        """
        definition = self.facts(module).definitions[name]
        named = {
            f"{spelled}={other}"
            + (self.facts(home).definitions[other].digest if homes[other] > 1 else "")
            for spelled, (home, other) in self.references(module, name)
        }
        return _sha([definition.digest, *sorted(named), *self._outside(module, definition.names)])

    def _outside(self, module: str, names: Iterable[str]) -> list[str]:
        """Return what the names that come from other libraries refer to."""
        imports = self.facts(module).imports
        return sorted(
            f"{first}={source}.{original}"
            for first in {name.partition(".")[0] for name in names}
            for source, original in imports.get(first, ())
            if source.split(".")[0] not in PACKAGES
        )
