"""What the tests ask of a cluster, all of it through `kubectl`."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
NAMESPACE = "raybone-test"
CRDS = ("rayjobs.ray.io", "rayclusters.ray.io")
# What was trained, in the order of the journal; raybone prints no such list.
EPOCHS = """
import json, sys
from raybone.hpo.journal import Journal
from raybone.storage import Folder
events = Journal(Folder(sys.argv[1])).events()
print(json.dumps([(e["config_id"], e["fold"], e["epoch"]) for e in events if e["event"] == "epoch"]))
"""


def kubectl(*arguments: str, text: str | None = None, check: bool = True) -> str:
    """Run it in the tests' namespace; what it says on an error is what the test fails with."""
    run = subprocess.run(
        ["kubectl", "--namespace", NAMESPACE, *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if check and run.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {run.stderr or run.stdout}")
    return run.stdout if run.returncode == 0 else run.stderr


def build(resource: str, image: str, folder: Path, *patches: dict[str, Any]) -> Path:
    """A folder for `kubectl apply --kustomize`: one of k8s/ as a site has it, with its namespace, image
    and storage class.
    """
    name, _, tag = image.rpartition(":")
    at_home = os.environ.get("RAYBONE_STORAGE_CLASS")
    claim = [{"op": "add", "path": "/spec/storageClassName", "value": at_home}]
    own = [{"target": {"kind": "PersistentVolumeClaim"}, "patch": yaml.safe_dump(claim)}]
    folder.mkdir(parents=True, exist_ok=True)
    kustomization = {
        "namespace": NAMESPACE,
        "resources": [os.path.relpath(ROOT / "k8s" / resource, folder)],
        "images": [{"name": "raybone", "newName": name, "newTag": tag}],
        "patches": [*(own if at_home else []), *patches],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def missing() -> str:
    """Why there is nothing to test on, in one line; nothing where there is a cluster."""
    if not shutil.which("kubectl"):
        return "no kubectl here"
    if subprocess.run(
        ["kubectl", "get", "--raw", "/readyz", "--request-timeout", "10s"],
        capture_output=True,
        check=False,
    ).returncode:
        return "kubectl reaches no cluster; set KUBECONFIG"
    if not all(kubectl("get", "crd", c, check=False).startswith("NAME") for c in CRDS):
        return "KubeRay is not installed in this cluster; docs/kubernetes.md says how"
    if kubectl("get", "namespace", NAMESPACE, check=False).startswith("NAME"):
        return f"the namespace {NAMESPACE} exists, which would be deleted at the end; delete it"
    if not os.environ.get("RAYBONE_IMAGE"):
        return "RAYBONE_IMAGE names no image; make kubernetes RAYBONE_IMAGE=REGISTRY/raybone:TAG"
    return ""


def get(*what: str) -> dict[str, Any]:
    """An object, or the list of them."""
    return dict(json.loads(kubectl("get", *what, "--output", "json")))


def on_the_volume(*command: str, check: bool = True) -> str:
    """Run it in the pod that has a shell on the shared volume."""
    return kubectl("exec", "data", "--", *command, check=check)


def until(what: str, seen: Callable[[], Any], seconds: float = 600) -> Any:
    """The first answer that is true; says what was awaited, and what the cluster was doing, when none is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := seen():
            return answer
        time.sleep(2)
    pods = kubectl("get", "pods,rayjobs,rayclusters", "--output", "wide", check=False)
    events = kubectl("get", "events", "--sort-by", ".lastTimestamp", check=False)
    raise AssertionError(
        f"not within {seconds:.0f} s: {what}\n{pods}\n" + "\n".join(events.splitlines()[-25:])
    )


def pods(**labels: str) -> list[dict[str, Any]]:
    """Running pods with these labels of KubeRay, ``node_type="worker"`` for example."""
    chosen = ",".join(f"ray.io/{k.replace('_', '-')}={v}" for k, v in labels.items())
    found = get("pods", "--selector", chosen)["items"]
    return [
        p
        for p in found
        if p["status"]["phase"] == "Running" and "deletionTimestamp" not in p["metadata"]
    ]


def epochs_of(out: str) -> list[tuple[str, int, int]]:
    """Finished fold epochs of a study on the volume, in order; none before its journal is there."""
    trained = json.loads(on_the_volume("python", "-c", EPOCHS, out))
    return [(config_id, fold, epoch) for config_id, fold, epoch in trained]


def submit(study: dict[str, Any], image: str, folder: Path) -> str:
    """Send a study as a user does, and return its RayJob's name."""
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    job = subprocess.run(
        [sys.executable, "-m", "raybone", "manifests", folder / "study.yaml", "--image", image],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    kubectl("apply", "--filename", "-", text=job)
    return str(yaml.safe_load(job)["metadata"]["name"])


def ended(job: str) -> str:
    """How a RayJob ended, or nothing while it runs."""
    status = get("rayjob", job).get("status", {})
    state = status.get("jobDeploymentStatus", "")
    return f"{state} {status.get('message', '')}".strip() if state in ("Complete", "Failed") else ""


def leaderboard(out: str) -> str:
    """As text, without the columns that no two runs have in common."""
    board = pd.read_csv(io.StringIO(on_the_volume("cat", f"{out}/leaderboard.csv")))
    return board.drop(
        columns=["train_seconds", "gpu_hours", "images_per_s", "memory_gb", "gpu_use"]
    ).to_csv()
