"""What a process runs on: versions, processor, GPUs. It names neither machine nor person."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from raybone.version import version

LIBRARIES = (
    "torch",
    "torchvision",
    "ultralytics",
    "monai",
    "ray",
    "optuna",
    "numpy",
    "scipy",
    "pandas",
)
ASKED = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


@cache
def environment() -> dict[str, Any]:
    """Returns raybone, python, system, processor, cores (that this process may use), memory_gb,
    gpus (name, driver and memory of each) and packages (versions by name).
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "raybone": version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": round(pages / 1e9),
        "gpus": _gpus(),
        "packages": packages(),
    }


def packages() -> dict[str, str]:
    """Versions of the installed libraries that change what is trained."""
    known = [(d.metadata["Name"] or "", d.version) for d in metadata.distributions()]
    installed = {name.lower(): number for name, number in known}
    return {name: installed[name] for name in LIBRARIES if name in installed}


def in_short(known: dict[str, Any]) -> str:
    """An environment as one cell of a table."""
    torch = known["packages"].get("torch", "none")
    machine = (
        "; ".join(sorted(set(known["gpus"]))) or f"{known['processor']}, {known['cores']} cores"
    )
    return f"raybone {known['raybone']}, Python {known['python']}, torch {torch}, {machine}"


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is another one now, such as ``torch 2.9.0 (was 2.8.0)``."""
    flat = [
        {**e, **e["packages"], "packages": None, "gpus": "; ".join(e["gpus"])}
        for e in (before, now)
    ]
    names = dict.fromkeys([*flat[1], *flat[0]])
    pairs = {name: [e.get(name) or "none" for e in flat] for name in names}
    return [f"{name} {new} (was {old})" for name, (old, new) in pairs.items() if old != new]


def _processor() -> str:
    """Its name as Linux has it, else its architecture."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> list[str]:
    try:
        told = subprocess.run(ASKED, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):  # no GPU here
        return []
    return [line.strip() for line in told.splitlines() if line.strip()]
