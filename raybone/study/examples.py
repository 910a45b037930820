"""The studies that come with raybone: protocols of papers, and small ones to try."""

from __future__ import annotations

from pathlib import Path

from raybone.errors import WrongInput

PACKAGE = Path(__file__).parents[1]
# A wheel holds them in the package, a checkout beside it.
FOLDERS = (PACKAGE / "jobs", PACKAGE.parent / "jobs")


def examples() -> dict[str, str]:
    """Returns the YAML text of each example study by its name, sorted."""
    files = [file for folder in FOLDERS for file in folder.glob("*.yaml")]
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(files)}


def example(name: str) -> str:
    """Returns the YAML text of one example study, with the comments that say how to run it.

    Raises:
        WrongInput: there is none of that name.
    """
    texts = examples()
    if name not in texts:
        raise WrongInput(f"example: must be one of {', '.join(texts)}, got {name!r}; choose one")
    return texts[name]


def example_lines() -> list[str]:
    """Returns name and first line of each example study."""
    return [f"{name:<24} {text.splitlines()[0].strip('# ')}" for name, text in examples().items()]
