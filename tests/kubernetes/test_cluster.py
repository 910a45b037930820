"""raybone on the cluster that kubectl points at: from a study to a leaderboard, through kills.

Costs half an hour, 8 CPUs and 32 GiB of requests.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubectl import (
    ROOT,
    build,
    ended,
    epochs_of,
    get,
    kubectl,
    leaderboard,
    missing,
    on_the_volume,
    pods,
    submit,
    until,
)

if why := missing():
    pytest.skip(why, allow_module_level=True)  # once, and not for each test

SMOKE: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / "smoke.yaml").read_text())
LONG = {**SMOKE, "epochs": 20, "search": {**SMOKE["search"], "folds": 3}}
FOLD_EPOCHS = 2 * 3 * LONG["epochs"]
HEAD = "http://raybone-head-svc:8265"
ASK = "import sys, urllib.request as u; print(u.urlopen(u.Request(sys.argv[1])).status)"
OVERLAYS = ["gpu", "spot", "kueue", "s3", "cluster", "cronjob"]


@pytest.mark.parametrize("overlay", ["base", *(f"overlays/{o}" for o in OVERLAYS)])
def test_the_api_server_takes_what_kustomize_builds(site: Path, image: str, overlay: str) -> None:
    folder = build(overlay, image, site / overlay)
    said = kubectl("apply", "--dry-run=server", "--kustomize", str(folder))
    kind = {"cluster": "raycluster", "cronjob": "raycronjob"}.get(Path(overlay).name, "rayjob")
    assert f"{kind}.ray.io/" in said
    assert "Warning" not in said


@pytest.mark.usefixtures("site")
def test_the_namespace_refuses_a_pod_that_is_not_restricted() -> None:
    pod = {"image": "busybox", "name": "root", "securityContext": {"privileged": True}}
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [pod]},
    }
    said = kubectl("apply", "--filename", "-", text=yaml.safe_dump(document), check=False)
    assert 'violates PodSecurity "restricted' in said


@pytest.mark.usefixtures("site")
def test_a_study_reaches_its_leaderboard(image: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    job = submit(SMOKE, image, tmp_path)
    until("the first epoch", lambda: epochs_of("/raybone/runs/smoke"))
    print(f"\nfrom kubectl apply to the first epoch: {time.monotonic() - begun:.0f} s")
    state = until("the job ends", lambda: ended(job))
    print(f"to the end: {time.monotonic() - begun:.0f} s, {state}")
    assert state.startswith("Complete")
    # The cluster goes with the job; logs and leaderboard do not.
    until("its pods are gone", lambda: not pods(node_type="head") + pods(node_type="worker"))
    print(on_the_volume("cat", "runs/smoke/leaderboard.csv"))
    assert on_the_volume("cat", "runs/smoke/leaderboard.csv").count("\n") == 3
    assert "fold 2 epoch 4: dice" in on_the_volume("raybone", "logs", "runs/smoke", "c000")
    assert sorted(epochs_of("/raybone/runs/smoke")) == [
        (c, fold, epoch) for c in ("c000", "c001") for fold in range(3) for epoch in (1, 2, 3, 4)
    ]


@pytest.mark.usefixtures("site")
def test_a_study_survives_its_pods(image: str, tmp_path: Path) -> None:
    """A worker, the submitter and the head, one after the other; then it equals an undisturbed one."""
    whole = submit({**LONG, "name": "whole"}, image, tmp_path)
    assert finished(whole, 1200).startswith("Complete")
    job, out = submit({**LONG, "name": "killed"}, image, tmp_path), "/raybone/runs/killed"
    for role in ("worker", "submitter", "head"):
        reaches(out, min(len(epochs_of(out)) + 8, FOLD_EPOCHS))
        assert not ended(job), f"it ended before its {role} could be killed"
        victim = (submitters(job) if role == "submitter" else pods(node_type=role))[0]
        kubectl("delete", "pod", victim["metadata"]["name"], "--grace-period=0", "--force")
        print(f"\n{role} killed after {len(epochs_of(out))} of {FOLD_EPOCHS} fold epochs")
    assert finished(job, 1200).startswith("Complete")
    trained = epochs_of(out)
    assert sorted(trained) == sorted(epochs_of("/raybone/runs/whole"))
    assert len(set(trained)) == len(trained) == FOLD_EPOCHS
    assert leaderboard("runs/killed") == leaderboard("runs/whole")


def reaches(out: str, epochs: int) -> None:
    """Wait for so many fold epochs."""
    until(f"{epochs} fold epochs", lambda: len(epochs_of(out)) >= epochs)


def finished(job: str, seconds: float) -> str:
    """How it ended."""
    return str(until("the job ends", lambda: ended(job), seconds))


def submitters(job: str) -> list[dict[str, Any]]:
    """Running pods of the Kubernetes Job that KubeRay submits with."""
    found = get("pods", "--selector", f"batch.kubernetes.io/job-name={job}")["items"]
    return [p for p in found if p["status"]["phase"] == "Running"]


@pytest.fixture
def standing(site: Path, image: str) -> str:
    """The overlay `cluster` with no worker at rest, and pods that leave after half a minute."""
    head = {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "20Gi"}
    changes = {
        "/spec/workerGroupSpecs/0/minReplicas": 0,
        "/spec/workerGroupSpecs/0/replicas": 0,
        "/spec/autoscalerOptions/idleTimeoutSeconds": 30,
        "/spec/headGroupSpec/template/spec/containers/0/resources": {
            "requests": head,
            "limits": head,
        },
    }
    patch = [{"op": "replace", "path": path, "value": value} for path, value in changes.items()]
    folder = build(
        "overlays/cluster",
        image,
        site / "standing",
        {"target": {"kind": "RayCluster"}, "patch": yaml.safe_dump(patch)},
    )
    built = kubectl("kustomize", str(folder))
    cluster = [d for d in yaml.safe_load_all(built) if d["kind"] == "RayCluster"]
    kubectl("apply", "--filename", "-", text=yaml.safe_dump_all(cluster))
    until("the head", lambda: pods(node_type="head"))
    return "raybone"


def test_workers_come_when_asked_and_go_and_no_token_is_no_answer(standing: str) -> None:
    def answer(*more: str) -> str:
        return on_the_volume(*more, "python", "-c", ASK, f"{HEAD}/api/jobs/", check=False)

    until("the dashboard says no to whoever has no token", lambda: "HTTP Error 401" in answer())
    assert not pods(node_type="worker")
    token = json.loads(kubectl("get", "secret", "raybone-token", "--output", "json"))["data"]
    study = yaml.safe_dump({**SMOKE, "name": "asked"})
    kubectl("exec", "-i", "data", "--", "tee", "asked.yaml", text=study)
    key = base64.b64decode(token["auth_token"]).decode()
    on_the_volume(
        "env", f"RAY_AUTH_TOKEN={key}", "RAY_AUTH_MODE=token",
        "raybone", "submit", "asked.yaml", "--address", HEAD, "--out", "/raybone/runs/asked", "--wait", "30",
    )  # fmt: skip
    first = until("a worker comes", lambda: len(pods(node_type="worker", cluster=standing)))
    until("the study ends", lambda: len(epochs_of("/raybone/runs/asked")) == 24)
    print(f"\nworkers: {first} at first, {len(pods(node_type='worker'))} when the study ended")
    until("the workers go", lambda: not pods(node_type="worker"))
    assert on_the_volume("cat", "runs/asked/leaderboard.csv").count("\n") == 3


def test_no_other_pod_reaches_the_head(standing: str) -> None:
    """Where the network plugin enforces policies; where it does not, the test says so and is skipped."""
    (head,) = pods(node_type="head", cluster=standing)
    stranger = get("pod", "data")
    stranger["metadata"] = {"name": "stranger", "labels": {"app": "stranger"}}
    stranger["spec"] = {k: v for k, v in stranger["spec"].items() if k != "nodeName"}
    del stranger["status"]
    kubectl("apply", "--filename", "-", text=json.dumps(stranger))
    kubectl("wait", "pod/stranger", "--for=condition=Ready", "--timeout=300s")
    url = f"http://{head['status']['podIP']}:8265/"
    ask = f"import urllib.request as u; u.urlopen({url!r}, timeout=10)"
    said = kubectl("exec", "stranger", "--", "python", "-c", ask, check=False)
    kubectl("delete", "pod", "stranger", "--grace-period=0", "--force")
    if "HTTP Error 401" in said or not said:
        pytest.skip("this cluster's network plugin enforces no NetworkPolicy")
    assert "timed out" in said or "refused" in said
