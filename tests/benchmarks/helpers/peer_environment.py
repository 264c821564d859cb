"""Where a package that a benchmark measures beside our code comes from."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path


def python_with(package: str, folder: Path) -> Path | None:
    """Return a Python that has a package: this one, else one of a new environment below a folder.

    None is returned where uv is missing, or cannot install it.
    """
    if importlib.util.find_spec(package) is not None:
        return Path(sys.executable)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        return None
    place = folder / f"with-{package}"
    install = ["pip", "install", "-q", "-p", str(place)]
    for command in (["venv", "-q", str(place)], [*install, package]):
        if subprocess.run([uv, *command], check=False).returncode:
            return None
    return place / "bin" / "python"
