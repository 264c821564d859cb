"""Put a Space together: `python -m deployments.space.assemble DIR|hf://owner/name [BUNDLE]`.

The Space gets `app.py`, its requirements and header, the page and the package `model` as they are
in this checkout, and the bundle: a folder that `phivision export` wrote is copied into it, the
`hf://` address of a model is fetched by the Space when it starts.
"""

import argparse
import ast
import shutil
import sys
import tempfile
from pathlib import Path

from flows.commands.export import HUB, hub_name, hub_token, upload
from pipeline.errors import PipelineError
from pipeline.publishing.export import new_folder

ROOT = Path(__file__).resolve().parents[2]
FILES = ("app.py", "requirements.txt", "README.md")
PACKAGES = ("flows", "model")
_FETCHED = 'os.environ["PHIVISION_BUNDLE"] = os.environ.get("PHIVISION_BUNDLE") or "{address}"\n'


def assemble(folder: Path, bundle: str) -> None:
    """Write a Space into a new folder.

    Args:
        folder: A folder that does not exist, or is empty.
        bundle: The folder of a bundle, or `hf://owner/name`.

    Raises:
        PipelineError: The folder is not empty, or `bundle` is not a bundle.
    """
    is_remote = bundle.startswith(HUB)
    if not is_remote and not (Path(bundle) / "bundle.json").is_file():
        raise PipelineError(f"not a bundle: {bundle}", "`phivision export DIR` writes one")
    with new_folder(folder) as space:
        for name in FILES:
            shutil.copyfile(Path(__file__).parent / name, space / name)
        for name in modules_of(space / "app.py"):
            (space / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, space / name)
        if is_remote:
            _fetch_at_start(space / "app.py", f"{HUB}{hub_name(bundle)}")
        else:
            shutil.copytree(bundle, space / "bundle")


def _fetch_at_start(app: Path, address: str) -> None:
    text, start = app.read_text("utf-8"), "\n\ndef main()"
    app.write_text(
        text.replace(start, f"\n{_FETCHED.format(address=address)}{start}", 1), encoding="utf-8"
    )


def modules_of(path: Path) -> list[str]:
    """Return our modules that a file imports, also indirectly, as sorted paths in the checkout."""
    names = {f"{package}/__init__.py" for package in PACKAGES}
    waiting = [path]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text("utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            name = f"{module.replace('.', '/')}.py"
            if module.partition(".")[0] in PACKAGES and name not in names:
                names.add(name)
                waiting.append(ROOT / name)
    return sorted(names)


def main(arguments: list[str] | None = None) -> None:
    """Assemble a Space in a folder, or upload it."""
    parser = argparse.ArgumentParser(description="Assemble a Hugging Face Space of the chat.")
    parser.add_argument("target", help="new folder, or hf://owner/name (token in HF_TOKEN)")
    parser.add_argument("bundle", help="folder written by `phivision export`, or hf://owner/name")
    parser.add_argument("--public", action="store_true", help="make a new Space public")
    given = parser.parse_args(arguments)
    try:
        if not given.target.startswith(HUB):
            assemble(Path(given.target), given.bundle)
            return
        name, token = hub_name(given.target), hub_token()
        with tempfile.TemporaryDirectory(prefix="phivision-space-") as folder:
            assemble(Path(folder) / "space", given.bundle)
            address = upload(Path(folder) / "space", name, token, "space", public=given.public)
        sys.stdout.write(f"{address}\n")
    except PipelineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
