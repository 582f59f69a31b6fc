"""Lists the benchmarks, each with the first line of its docstring."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

_FOLDER = Path(__file__).parent
_COMMAND = re.compile(r"`(python -m benchmarks\.\w+)( \w+)?`: (.+)")


def main() -> int:
    """Print one line per benchmark; return 0."""
    for path in sorted([*_FOLDER.glob("*.py"), *_FOLDER.glob("*/__main__.py")]):
        first_line = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        if found := _COMMAND.fullmatch(first_line):
            command, argument, text = found.groups(default="")
            print(f"  {command + argument:<44} {text}")
    print("\nEach takes --help. All but the GPU's run on the CPU; `.venv/bin/python` has what they need.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
