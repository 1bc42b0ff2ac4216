"""How big the house is: lines per room and the longest functions. `python scripts/sizes.py`."""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "luban"


def main() -> None:
    rooms, functions = Counter(), []
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        rooms[path.relative_to(PACKAGE).parts[0]] += len(source.splitlines())
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                functions.append((node.end_lineno - node.lineno + 1, f"{path.relative_to(PACKAGE)}:{node.name}"))
    for room, lines in rooms.most_common():
        print(f"{lines:6d}  {room}")
    print(f"{sum(rooms.values()):6d}  in all")
    for lines, name in sorted(functions, reverse=True)[:8]:
        print(f"{lines:6d}  {name}")


if __name__ == "__main__":
    main()
