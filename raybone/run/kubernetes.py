"""A study as a RayJob of KubeRay 1.7: one YAML document that carries the study with it."""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import yaml

from raybone.errors import WrongInput
from raybone.storage import plain_url
from raybone.study.files import write_study
from raybone.study.relocate import relocated
from raybone.study.spec import Study, packages_of
from raybone.version import RELEASE

MOUNT = "/raybone"  # the shared volume, in every pod that trains
# The annotation that a file of the head is made from: data, which no shell reads
STUDY = "raybone/study"
PACKAGES = "raybone/packages"  # what the image must have beside raybone
NAME_LIMIT = 47  # characters of a RayJob's name; KubeRay appends to it
RUNS = 8  # training runs at once when the study does not say
WEEK = 7 * 24 * 3600


def manifests(study: Study, out: str | None = None, image: str | None = None) -> str:
    """The RayJob that searches this study; the dataset is not read, as it lies in the cluster.

    Args:
        out: study folder: below the shared volume, where relative paths are, or an ``s3://`` URL.
        image: with a tag or digest; by default the one that k8s/image/Dockerfile is tagged with.
    Raises:
        WrongInput: ``out`` would not outlive the pods or could mean something to a shell; the image
            has no fixed tag.
    """
    image = image or f"raybone:{RELEASE}-ray{version('ray')}"
    out = out or f"runs/{study.name}"
    place = out if "://" in out else posixpath.normpath(posixpath.join(MOUNT, out))
    problems = []
    if not re.fullmatch(rf"(s3://[a-z0-9.-]+|{MOUNT})(/[A-Za-z0-9._=+-]+)+", place):
        problems.append(
            f"--out {out!r}: must be below {MOUNT}, the shared volume, or s3://BUCKET/FOLDER, in "
            "letters, digits and ._=+- only; choose another"
        )
    if not re.fullmatch(r"[\w./:-]+(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})", image, re.ASCII):
        problems.append(
            f"--image {image!r}: must end in a tag other than latest, or a digest; name the "
            "version to run"
        )
    if problems:
        raise WrongInput(*problems)
    dataset = plain_url(study.dataset).removeprefix("file://")
    dataset = dataset if "://" in dataset else _mounted(dataset)
    study = relocated(study, _mounted).model_copy(update={"dataset": dataset})
    job = yaml.safe_load(files("raybone.run").joinpath("rayjob.yaml").read_text(encoding="utf-8"))
    job["metadata"]["name"] = _name(study.name)
    spec, hours = job["spec"], study.limits.hours
    spec["entrypoint"] = (
        f"raybone search /etc/raybone/study.yaml --out {place} --address auto --wait 60"
    )
    # A third more and an hour: what is at work when limits.hours is over ends its rung, and nodes
    # must come up first.
    spec["activeDeadlineSeconds"] = (
        WEEK if math.isinf(hours) else math.ceil(min(hours * 4800 + 3600, 2**31 - 1))
    )
    cluster = spec["rayClusterSpec"]
    cluster["rayVersion"] = version("ray")
    head, group = cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]
    head["metadata"]["annotations"][STUDY] = write_study(study)
    if packages := packages_of(study):
        job["metadata"]["annotations"] = {PACKAGES: ", ".join(packages)}
    runs = runs_of(study)
    _ask(head, str(2 + runs // 4), f"{4 + 2 * runs}Gi")
    _size(group, study)
    for pod in (spec["submitterPodTemplate"], head, group["template"]):
        container = pod["spec"]["containers"][0]
        container["image"] = image
        # Also earlier studies and weights may lie there
        if "s3://" in place + write_study(study) and pod is not spec["submitterPodTemplate"]:
            container["envFrom"] = [{"secretRef": {"name": "raybone-s3"}}]
    return yaml.dump(job, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _size(group: dict[str, Any], study: Study) -> None:
    """A pod for each training worker; one GPU's pod takes all runs that share the GPU.

    KubeRay starts the job when ``replicas`` pods run, so that is room for one run; the driver asks
    for the others.
    """
    resources = study.resources
    sharing = int(1 / resources.gpus + 1e-9) if 0 < resources.gpus < 1 else 1
    sharing = min(sharing, runs_of(study) * resources.workers)
    cpus, gpus = resources.cpus * sharing, math.ceil(resources.gpus)
    pods = math.ceil(runs_of(study) * resources.workers / sharing)
    group.update(
        groupName="gpu" if gpus else "cpu",
        replicas=resources.workers,
        minReplicas=resources.workers,
        maxReplicas=pods,
    )
    _ask(group["template"], str(cpus), f"{max(8, 4 * cpus)}Gi", gpus)
    if gpus:
        group["template"]["spec"]["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]


def _ask(pod: dict[str, Any], cpu: str, memory: str, gpus: int = 0) -> None:
    """Requests and limits alike: a pod gets what it was scheduled for, and is among the last to be
    evicted.
    """
    wanted = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    for asked in pod["spec"]["containers"][0]["resources"].values():
        asked.update(wanted)


def runs_of(study: Study) -> int:
    """Training runs at once, at full size."""
    wanted = study.resources.concurrent
    return min(study.search.trials, RUNS) if wanted == "auto" else int(wanted)


def _mounted(place: str) -> str:
    """A relative path below the shared volume; raises WrongInput where it leads out of it. Another
    volume, which an overlay may mount, is named from the root.
    """
    there = posixpath.normpath(posixpath.join(MOUNT, place))
    if place[:1] in ("~", "") or not (place[0] == "/" or f"{there}/".startswith(f"{MOUNT}/")):
        raise WrongInput(
            f"{place!r}: must be a place on the shared volume, relative to {MOUNT}, but is "
            "outside; copy it there"
        )
    return there


def _name(study: str) -> str:
    """A DNS label that begins with a letter; where letters were changed or cut, a hash keeps two
    studies apart.
    """
    name = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    name = name if name[:1].isalpha() else f"study-{name}"
    if name == study and len(name) <= NAME_LIMIT:
        return name
    return f"{name[: NAME_LIMIT - 7].rstrip('-')}-{hashlib.sha256(study.encode()).hexdigest()[:6]}"


class _Dumper(yaml.SafeDumper):
    """YAML for people: no aliases, and text of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Repeat instead of referring."""
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)
