"""Figures of the house at several commits, by one script: how large, how dense, how tied together.

    python benchmarks/house.py COMMIT ...

A commit of the time before ``ruff format`` is formatted first, so that lines compare.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
PRIVATE_RAY = ("ray._", "ray.core.generated", "ray.dashboard.modules", "ray.train.v2._internal")


def parameters(function: FUNCTIONS) -> int:
    """How many parameters a function has; a method's own object is none of them."""
    arguments = function.args
    names = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    return len([name for name in names if name not in {"self", "cls"}])


def imported(tree: ast.Module) -> list[str]:
    """Dotted names of what a file imports, wherever the import stands."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


def nested(tree: ast.Module) -> int:
    """Comprehensions that stand inside another one."""
    inside = set()
    for outer in ast.walk(tree):
        if isinstance(outer, COMPREHENSIONS):
            inside |= {n for n in ast.walk(outer) if isinstance(n, COMPREHENSIONS)} - {outer}
    return len(inside)


def figures(package: Path) -> dict[str, float]:
    """The figures of a formatted package."""
    texts = {path.relative_to(package): path.read_text() for path in package.rglob("*.py")}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = {path: text.count("\n") for path, text in texts.items()}
    functions = [n for t in trees.values() for n in ast.walk(t) if isinstance(n, FUNCTIONS)]
    arrows = set()
    private = 0
    for path, tree in trees.items():
        room = path.parts[0].removesuffix(".py")
        for name in imported(tree):
            private += name.startswith(PRIVATE_RAY)
            if name.startswith("raybone.") and (target := name.split(".")[1]) != room:
                arrows.add((room, target))
    rooms = Counter(path.parent for path in texts if path.name != "__init__.py")
    return {
        "syntax nodes": sum(1 for t in trees.values() for _ in ast.walk(t)),
        "formatted lines": sum(lines.values()),
        "files": len(texts),
        "files in the top folder": len([p for p in texts if len(p.parts) == 1]),
        "most files in a room": max(rooms.values()),
        "arrows between rooms": len(arrows),
        "files over 400 lines": len([n for n in lines.values() if n > 400]),
        "functions over 60 lines": len(
            [f for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 60]
        ),
        "functions over 6 parameters": len([f for f in functions if parameters(f) > 6]),
        "private imports of Ray": private,
        "nested comprehensions per 1,000 lines": round(
            1000 * sum(map(nested, trees.values())) / sum(lines.values()), 1
        ),
    }


def at(commit: str, folder: Path) -> Path:
    """The package of a commit, formatted, below a folder."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "raybone"], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    ruff = [sys.executable, "-m", "ruff", "format", "--quiet", "--isolated", "--line-length", "100"]
    subprocess.run([*ruff, str(folder)], check=True)
    return folder / "raybone"


def main(commits: list[str]) -> None:
    """Print a table with a column for each commit."""
    with tempfile.TemporaryDirectory() as scratch:
        columns = [figures(at(c, Path(scratch, str(i)))) for i, c in enumerate(commits)]
    print(f"| | {' | '.join(commits)} |")
    print(f"|---|{'---|' * len(commits)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:,}' for column in columns)} |")


if __name__ == "__main__":
    main(sys.argv[1:] or ["HEAD"])
