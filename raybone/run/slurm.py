"""A study as a batch script of Slurm, which carries the study with it."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
from importlib.resources import files
from pathlib import Path
from string import Template

from raybone.errors import WrongInput
from raybone.run.kubernetes import runs_of
from raybone.storage import plain_url
from raybone.study.files import write_study
from raybone.study.relocate import relocated
from raybone.study.spec import Study

DAY = 24.0  # hours, where a study sets no limit
SPARE = 1 / 3  # of limits.hours, for what is at work when they are over


def sbatch(study: Study, out: str, nodes: int = 1) -> str:
    """The script that searches this study; the dataset is not read, as it may lie elsewhere.

    Args:
        out: study folder, which every node reaches; a relative path is below this folder.
        nodes: to share the training runs that are wanted at once.
    Raises:
        WrongInput: fewer nodes than one, or more than workers.
    """
    workers = runs_of(study) * study.resources.workers
    if not 1 <= nodes <= workers:
        raise WrongInput(
            f"--nodes {nodes}: must be from 1 to {workers}, the training workers that "
            "resources.concurrent and resources.workers ask for; change it"
        )
    place, dataset = _absolute(out), _absolute(study.dataset)
    study = relocated(study, _absolute).model_copy(update={"dataset": dataset})
    text, each = write_study(study).rstrip("\n"), math.ceil(workers / nodes)
    share = study.resources.gpus
    sharing = int(1 / share + 1e-9) if 0 < share < 1 else 1  # workers on a GPU
    gpus = math.ceil(each / sharing) if 0 < share < 1 else math.ceil(each * share)
    hours = DAY if math.isinf(study.limits.hours) else study.limits.hours * (1 + SPARE) + 1
    script = files("raybone.run").joinpath("sbatch.sh").read_text(encoding="utf-8")
    return Template(script).substitute(
        name=re.sub(r"[^\w.-]+", "-", study.name, flags=re.ASCII),
        nodes=nodes,
        cpus=each * study.resources.cpus + 1,
        gpus=gpus,
        gpus_line=f"#SBATCH --gpus-per-node={gpus}" if gpus else "# It asks for no GPU.",
        time=f"{int(hours)}:{int(hours % 1 * 60):02d}:00",
        out=shlex.quote(place),
        study=text,
        mark=f"STUDY-{hashlib.sha256(text.encode()).hexdigest()[:16]}",
    )


def _absolute(place: str) -> str:
    place = plain_url(place)
    return place if "://" in place else os.fspath(Path(place).expanduser().absolute())
