"""Commands that compute nothing with a model import nothing of those that do: seconds each."""

import subprocess
import sys

SLOW = ("torch", "transformers", "open_clip", "prefect", "gradio")
MODULES = (
    *("flows.cli", "flows.pages.report", "flows.pages.browse", "flows.commands.similar"),
    *("flows.commands.plan", "flows.commands.show", "flows.commands.runs"),
)


def test_looking_imports_no_slow_library() -> None:
    code = (
        "import sys, importlib\n"
        f"for module in {MODULES}:\n"
        "    importlib.import_module(module)\n"
        f"    print(*(f'{{module}} {{name}}' for name in {SLOW} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()
