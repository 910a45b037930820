"""A study as a RayJob of KubeRay 1.7: one YAML document that carries the study with it."""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from importlib.metadata import version
from typing import Any

import yaml

from raybone import __version__
from raybone.records import WrongInput
from raybone.spec import Study, write_study

MOUNT = "/raybone"  # the shared volume, in every pod that trains
STUDY = "raybone/study"  # the annotation that a file of the head is made from: data, which no shell reads
NAME_LIMIT = 47  # characters of a RayJob's name; KubeRay appends to it
RUNS = 8  # training runs at once when the study does not say
WEEK = 7 * 24 * 3600
# Labels that mark preemptible nodes at Google, Amazon, Karpenter and Azure.
SPOT = {"cloud.google.com/gke-spot": "true", "eks.amazonaws.com/capacityType": "SPOT",
        "karpenter.sh/capacity-type": "spot", "kubernetes.azure.com/scalesetpriority": "spot"}


def manifests(study: Study, out: str | None = None, image: str | None = None) -> str:
    """The RayJob that searches this study; the dataset is not read, as it lies in the cluster.

    Args:
        out: study folder: below the shared volume, where relative paths are, or an ``s3://`` URL.
        image: with a tag or digest; by default the one that k8s/image/Dockerfile is tagged with.
    Raises:
        WrongInput: ``out`` would not outlive the pods or could mean something to a shell; the image has no fixed tag.
    """
    image = image or f"raybone:{__version__}-ray{version('ray')}"
    out = out or f"runs/{study.name}"
    place = out if "://" in out else posixpath.normpath(posixpath.join(MOUNT, out))
    problems = []
    if not re.fullmatch(rf"(s3://[a-z0-9.-]+|{MOUNT})(/[A-Za-z0-9._=+-]+)+", place):
        problems.append(f"--out {out!r}: must be below {MOUNT}, the shared volume, or s3://BUCKET/FOLDER, in letters, "
                        "digits and ._=+- only; choose another")
    if not re.fullmatch(r"[\w./:-]+(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})", image, re.ASCII):
        problems.append(f"--image {image!r}: must end in a tag other than latest, or a digest; name the version to run")
    if problems:
        raise WrongInput(*problems)
    if "://" not in study.dataset:
        study = study.model_copy(update={"dataset": posixpath.normpath(posixpath.join(MOUNT, study.dataset))})
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob",
           "metadata": {"name": _name(study.name), "labels": _labels()}, "spec": _job(study, place, image)}
    return yaml.dump(job, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _job(study: Study, out: str, image: str) -> dict[str, Any]:
    hours = study.limits.hours
    # A third more and an hour: what is at work when limits.hours is over ends its rung, and nodes must come up first.
    deadline = WEEK if math.isinf(hours) else math.ceil(min(hours * 4800 + 3600, 2**31 - 1))
    return {
        "entrypoint": f"raybone search /etc/raybone/study.yaml --out {out} --address auto --wait 60",
        "submissionMode": "K8sJobMode",
        "backoffLimit": 3,
        "submitterConfig": {"backoffLimit": 2},
        "activeDeadlineSeconds": deadline,
        "preRunningDeadlineSeconds": 3600,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "submitterPodTemplate": _pod(_container("ray-job-submitter", image, "500m", "1Gi", "1Gi"),
                                     serviceAccountName="raybone"),
        "rayClusterSpec": _cluster(study, image, "raybone-s3" if out.startswith("s3:") else ""),
    }


def _cluster(study: Study, image: str, secret: str) -> dict[str, Any]:
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": "raybone-token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2", "idleTimeoutSeconds": 300,
            "resources": _resources("500m", "1Gi", "1Gi"), "securityContext": _confined(),
            "volumeMounts": [{"name": "autoscaler-token", "readOnly": True,
                              "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]},
        "headGroupSpec": _head(study, image, secret),
        "workerGroupSpecs": [_workers(study, image, secret)],
    }


def _head(study: Study, image: str, secret: str) -> dict[str, Any]:
    runs = _runs(study)
    container = _container("ray-head", image, str(2 + runs // 4), f"{4 + 2 * runs}Gi", "20Gi")
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "as-metrics": 44217,
             "dash-metrics": 44227}
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    _mount(container, secret)
    container["volumeMounts"].append({"name": "study", "mountPath": "/etc/raybone", "readOnly": True})
    file = {"path": "study.yaml", "fieldRef": {"fieldPath": f"metadata.annotations['{STUDY}']"}}
    # The autoscaler alone talks to the Kubernetes API; what a pod mounts by default would reach the driver as well.
    token = [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
             {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
             {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]
    regular = [{"key": label, "operator": "NotIn", "values": [value]} for label, value in SPOT.items()]
    pod = _pod(container, volumes=[{"name": "autoscaler-token", "projected": {"sources": token}}, _volume(),
                                   {"name": "study", "downwardAPI": {"items": [file]}}],
               affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                   "nodeSelectorTerms": [{"matchExpressions": regular}]}}})
    pod["metadata"]["annotations"] = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                                      "karpenter.sh/do-not-disrupt": "true", STUDY: write_study(study)}
    return {"rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", **_store()}, "template": pod}


def _workers(study: Study, image: str, secret: str) -> dict[str, Any]:
    """A pod for each training worker; one GPU's pod takes all runs that share the GPU."""
    resources = study.resources
    sharing = int(1 / resources.gpus + 1e-9) if 0 < resources.gpus < 1 else 1
    cpus, gpus = resources.cpus * sharing, math.ceil(resources.gpus)
    container = _container("ray-worker", image, str(cpus), f"{max(8, 4 * cpus)}Gi", "32Gi", gpus)
    _mount(container, secret)
    pods = math.ceil(_runs(study) * resources.workers / sharing)
    gpu_nodes = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpus else []
    return {"groupName": "gpu" if gpus else "cpu", "replicas": pods, "minReplicas": resources.workers,
            "maxReplicas": pods, "rayStartParams": _store(),
            "template": _pod(container, serviceAccountName="raybone", volumes=[_volume()], tolerations=gpu_nodes)}


def _runs(study: Study) -> int:
    """Training runs at once, at full size."""
    wanted = study.resources.concurrent
    return min(study.search.trials, RUNS) if wanted == "auto" else int(wanted)


def _pod(container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A pod template as the "restricted" standard of Kubernetes wants it, without a token."""
    user = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}}
    return {"metadata": {"labels": _labels()},
            "spec": {"restartPolicy": "Never", "automountServiceAccountToken": False, "securityContext": user,
                     **spec, "containers": [container]}}


def _container(name: str, image: str, cpu: str, memory: str, disk: str, gpus: int = 0) -> dict[str, Any]:
    # A node may have to come up before a run starts, which takes longer than Ray Train waits by default.
    env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800"}
    return {"name": name, "image": image, "env": [{"name": key, "value": value} for key, value in env.items()],
            "resources": _resources(cpu, memory, disk, gpus), "securityContext": _confined()}


def _resources(cpu: str, memory: str, disk: str, gpus: int = 0) -> dict[str, Any]:
    """Requests and limits alike: a pod gets what it was scheduled for, and is among the last to be evicted."""
    asked = {"cpu": cpu, "memory": memory, "ephemeral-storage": disk, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"requests": asked, "limits": asked}


def _confined() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"}}


def _mount(container: dict[str, Any], secret: str) -> None:
    container["volumeMounts"] = [{"name": "raybone", "mountPath": MOUNT}]
    if secret:
        container["envFrom"] = [{"secretRef": {"name": secret}}]


def _volume() -> dict[str, Any]:
    return {"name": "raybone", "persistentVolumeClaim": {"claimName": "raybone"}}


def _store() -> dict[str, str]:
    """Ray's object store holds messages only here; by default it would take 30 % of the memory."""
    return {"object-store-memory": str(256 * 2**20)}


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "raybone"}


def _name(study: str) -> str:
    """A DNS label that begins with a letter; where letters were changed or cut, a hash keeps two studies apart."""
    name = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    name = name if name[:1].isalpha() else f"study-{name}"
    if name == study and len(name) <= NAME_LIMIT:
        return name
    return f"{name[:NAME_LIMIT - 7].rstrip('-')}-{hashlib.sha256(study.encode()).hexdigest()[:6]}"


class _Dumper(yaml.SafeDumper):
    """YAML for people: no aliases, and text of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Repeat instead of referring."""
        return True


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))
