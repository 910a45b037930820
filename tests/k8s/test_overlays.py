"""The files of k8s/: each as it stands, and what kustomize builds from them."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from strict import RAY, ROOT, VERSION, Document, pods, rule_problems, schema_problems

from raybone.run.kubernetes import manifests
from raybone.study.files import parse_study, read_study

K8S = ROOT / "k8s"
GPU = K8S / "overlays" / "gpu" / "study.yaml"
SMOKE = ROOT / "jobs" / "smoke.yaml"
# Whole documents: what an overlay changes or fills is looked at as kustomize builds it.
FILES = sorted(
    p
    for p in K8S.rglob("*.yaml")
    if p.name not in ("kustomization.yaml", "workers.yaml", "queue.yaml", "user.yaml")
    and "overlays" not in p.parts
)
BUILT = [
    "base",
    "data",
    *(f"overlays/{o}" for o in ("gpu", "spot", "kueue", "s3", "cronjob", "cluster")),
]


def job_of(study: Path, out: str | None = None) -> Document:
    return dict(yaml.safe_load(manifests(read_study(study), out)))


def documents(path: Path) -> list[Document]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def build(folder: Path) -> list[Document]:
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here: kustomize was not run")
    run = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return list(yaml.safe_load_all(run.stdout))


def spot_of(group: Document) -> Document:
    """The spot component's patch of a group of workers, written a second time."""
    spot: Document = {
        **copy.deepcopy(group),
        "groupName": "spot",
        "minReplicas": 0,
        "replicas": 0,
        "priority": 10,
    }
    pod = spot["template"]["spec"]
    pod["tolerations"] += [
        {"key": key, "operator": "Exists", "effect": "NoSchedule"}
        for key in ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority")
    ]
    labels = {
        "cloud.google.com/gke-spot": "true",
        "eks.amazonaws.com/capacityType": "SPOT",
        "karpenter.sh/capacity-type": "spot",
        "kubernetes.azure.com/scalesetpriority": "spot",
    }
    terms = [
        {"matchExpressions": [{"key": k, "operator": "In", "values": [v]}]}
        for k, v in labels.items()
    ]
    pod["affinity"] = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}
        }
    }
    return spot


def nightly() -> Document:
    """What overlays/cronjob must build: the GPU study from 20:00 to 06:00."""
    spec = job_of(GPU, "runs/nightly")["spec"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": {"name": "nightly", "labels": {"app.kubernetes.io/part-of": "raybone"}},
        "spec": {
            "schedule": "0 20 * * *",
            "timeZone": "Etc/UTC",
            "jobTemplate": {**spec, "activeDeadlineSeconds": 10 * 3600},
        },
    }


def standing() -> Document:
    """What overlays/cluster must build: the clusters of the RayJobs in one, without a study."""
    cluster, gpu = (job_of(study)["spec"]["rayClusterSpec"] for study in (SMOKE, GPU))
    (cpus,), (gpus,) = cluster["workerGroupSpecs"], gpu["workerGroupSpecs"]
    head = gpu["headGroupSpec"]["template"]
    del head["metadata"]["annotations"]["raybone/study"]
    for named in (head["spec"]["volumes"], head["spec"]["containers"][0]["volumeMounts"]):
        named.remove(next(n for n in named if n["name"] == "study"))
    spot = spot_of(gpus)
    for group in (cpus, gpus):
        group["template"]["spec"]["affinity"] = head["spec"]["affinity"]
    gpus.update(replicas=0, minReplicas=0)
    cpus.update(replicas=1, maxReplicas=8)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "raybone", "labels": {"app.kubernetes.io/part-of": "raybone"}},
        "spec": {**gpu, "workerGroupSpecs": [cpus, gpus, spot]},
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(K8S)))
def test_every_file_is_strictly_of_its_schema_and_keeps_the_rules(path: Path) -> None:
    found = documents(path)
    assert found
    for document in found:
        assert schema_problems(document) == []
        assert rule_problems(document) == []


def the(kind: str, folder: str) -> Document:
    """The one document of this kind in what kustomize builds of a folder, without its namespace."""
    (found,) = [d for d in build(K8S / folder) if d["kind"] == kind]
    assert found["metadata"].pop("namespace") == "raybone"
    return dict(found)


def parsed(document: Document) -> Document:
    """With its study as an object, as a person writes it in other words than `manifests` prints it."""
    job = document["spec"].get("jobTemplate", document["spec"])
    annotations = job["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["annotations"]
    annotations["raybone/study"] = parse_study(yaml.safe_load(annotations["raybone/study"]))
    return document


def test_the_base_is_what_manifests_prints() -> None:
    assert (K8S / "base" / "rayjob.yaml").read_text() == manifests(read_study(SMOKE))


@pytest.mark.parametrize(
    ("overlay", "study", "out"),
    [("gpu", GPU, None), ("s3", SMOKE, "s3://raybone/runs/smoke")],
)
def test_an_overlay_builds_what_manifests_prints(
    overlay: str, study: Path, out: str | None
) -> None:
    assert parsed(the("RayJob", f"overlays/{overlay}")) == parsed(job_of(study, out))


def test_cronjob_and_cluster_are_made_of_the_same() -> None:
    assert parsed(the("RayCronJob", "overlays/cronjob")) == parsed(nightly())
    assert the("RayCluster", "overlays/cluster") == standing()


def test_a_night_ends_before_the_next_one() -> None:
    spec = nightly()["spec"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", spec["schedule"])
    assert spec["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600
    assert len(nightly()["metadata"]["name"]) <= 36


def test_the_network_lets_out_names_and_the_api_and_nothing_in_but_the_operator() -> None:
    pods, api = documents(K8S / "base" / "networkpolicy.yaml")
    own = {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "raybone"}}}
    assert all(
        own["podSelector"]["matchLabels"].items() <= p["spec"]["podSelector"]["matchLabels"].items()
        for p in (pods, api)
    )
    assert pods["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["from"] == [own] and "ports" not in rule for rule in pods["spec"]["ingress"]] == [
        True,
        False,
    ]
    assert pods["spec"]["ingress"][1]["ports"] == [{"protocol": "TCP", "port": 8265}]
    to_all, names = pods["spec"]["egress"]
    assert to_all == {"to": [own]}
    assert {(p["protocol"], p["port"]) for p in names["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert api["spec"]["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
    assert {p["port"] for p in api["spec"]["egress"][0]["ports"]} == {443, 6443}


def test_a_budget_of_pods_that_a_custom_resource_owns_is_a_number_of_available_ones() -> None:
    (budget,) = documents(K8S / "base" / "poddisruptionbudget.yaml")
    assert "maxUnavailable" not in budget["spec"]
    assert isinstance(budget["spec"]["minAvailable"], int)
    assert budget["spec"]["selector"]["matchLabels"]["ray.io/node-type"] == "head"


def test_the_volume_is_shared_and_the_account_has_no_token() -> None:
    (claim,), (account,) = (
        documents(K8S / "base" / f"{n}.yaml") for n in ("storage", "serviceaccount")
    )
    assert claim["metadata"]["name"] == "raybone"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert account["automountServiceAccountToken"] is False


def test_every_port_that_is_watched_is_open_and_exists() -> None:
    (monitor,), (policy,) = (
        documents(K8S / "components" / "monitoring" / f"{n}.yaml")
        for n in ("podmonitor", "networkpolicy")
    )
    head = job_of(SMOKE)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ][0]
    ports = {p["name"]: p["containerPort"] for p in head["ports"]}
    watched = {ports[e["port"]] for e in monitor["spec"]["podMetricsEndpoints"]}
    assert (
        watched
        == {p["port"] for p in policy["spec"]["ingress"][0]["ports"]}
        == {8080, 44217, 44227}
    )


def test_on_openshift_no_pod_names_its_user(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(manifests(read_study(SMOKE)))
    component = os.path.relpath(K8S / "components" / "openshift", tmp_path)
    kustomization = {"resources": ["mine.yaml"], "components": [component]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (job,) = build(tmp_path)
    assert schema_problems(job) == []
    found = [pod["spec"]["securityContext"] for _, pod in pods(job)]
    assert [sorted(f) for f in found] == [
        ["fsGroupChangePolicy", "runAsNonRoot", "seccompProfile"]
    ] * 3


def test_no_secret_is_in_the_repository() -> None:
    assert not any(d.get("kind") == "Secret" for p in FILES for d in documents(p))


@pytest.mark.parametrize("folder", BUILT)
def test_what_kustomize_builds_is_strict_as_well(folder: str) -> None:
    built = build(K8S / folder)
    for document in built:
        assert schema_problems(document) == []
        assert rule_problems(document) == []
    assert {d["metadata"].get("namespace", "raybone") for d in built} == {"raybone"}
    work = {"cluster": "RayCluster", "cronjob": "RayCronJob", "data": "Pod"}.get(
        folder.split("/")[-1], "RayJob"
    )
    assert [
        d["kind"] for d in built if d["kind"] in ("RayJob", "RayCluster", "RayCronJob", "Pod")
    ] == [work]
    kinds = {
        "Namespace",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "PodDisruptionBudget",
    }
    assert folder == "data" or kinds <= {d["kind"] for d in built}


def test_spot_adds_a_preferred_group_and_keeps_the_first_on_nodes_that_stay() -> None:
    (job,) = [d for d in build(K8S / "overlays" / "spot") if d["kind"] == "RayJob"]
    (plain,) = job_of(GPU)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    stays, spot = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert spot == spot_of(plain)
    assert stays["replicas"] == stays["minReplicas"] == 1
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert stays["template"]["spec"]["affinity"] == head["affinity"]


def test_kueue_gets_a_queue_and_a_cluster_of_fixed_size() -> None:
    (job,) = [d for d in build(K8S / "overlays" / "kueue") if d["kind"] == "RayJob"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "raybone"
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert len(job["spec"]["rayClusterSpec"]["workerGroupSpecs"]) < 8
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["maxReplicas"]


@pytest.mark.parametrize(
    "chosen",
    [
        ("spot", "s3", "monitoring"),
        ("kueue", "s3", "monitoring"),
        ("monitoring", "spot"),
        ("kueue",),
        ("kueue-elastic", "s3"),
    ],
    ids="+".join,
)
def test_components_go_together_on_a_study_of_ones_own(
    chosen: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        manifests(read_study(GPU, ["name=mine"]), "s3://bucket/mine")
    )
    paths = {
        "resources": ["mine.yaml"],
        "components": [os.path.relpath(K8S / "components" / c, tmp_path) for c in chosen],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": "raybone", **paths}))
    built = build(tmp_path)
    assert [schema_problems(d) + rule_problems(d) for d in built] == [[]] * len(built)
    (job,) = [d for d in built if d["kind"] == "RayJob"]
    queued = {"kueue", "kueue-elastic"} & set(chosen)
    assert bool(queued) == ("kueue.x-k8s.io/queue-name" in job["metadata"]["labels"])
    if "kueue-elastic" in chosen:
        assert job["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
        assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert len(job["spec"]["rayClusterSpec"]["workerGroupSpecs"]) == 1 + ("spot" in chosen)
    assert {"s3", "monitoring"} & set(chosen) == {
        d["metadata"]["name"].split("-")[1].replace("metrics", "monitoring")
        for d in built
        if d["kind"] == "NetworkPolicy"
    }


DOCKERFILE = (K8S / "image" / "Dockerfile").read_text()


def test_the_image_is_pinned_non_root_and_installed_without_an_index() -> None:
    assert f"--tag raybone:{VERSION}-ray{RAY} ." in DOCKERFILE
    assert re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.M) == ["3.11.13-slim-bookworm"]
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) == ["python:${PYTHON}"] * 2
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert "--no-index --find-links /wheelhouse" in last
    assert "pip wheel --no-cache-dir --constraint constraints.txt" in DOCKERFILE
    assert last.index("USER 1000:1000") < last.index("import cv2")
    assert "USER root" not in DOCKERFILE
    assert "RAY_USAGE_STATS_ENABLED=0" in DOCKERFILE
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", DOCKERFILE, re.M)
    allowed = re.findall(r"^!(\S+)", (K8S / "image" / "Dockerfile.dockerignore").read_text(), re.M)
    assert {name for names in copied for name in names.split()} == set(allowed)


def test_the_page_names_every_file_and_only_those() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    named = set(re.findall(r"^\| `(k8s/[^`]+)`", page, re.M))
    assert named == {
        str(p.relative_to(ROOT))
        for p in K8S.rglob("*")
        if p.is_file() and p.name != "kustomization.yaml"
    }
    assert f"raybone:{VERSION}-ray{RAY}" in page
    for folder in re.findall(r"kubectl apply -k (k8s\S+[^`\s])", page):
        assert (ROOT / folder / "kustomization.yaml").is_file()


def test_the_kustomizations_of_the_page_build(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    blocks = [
        re.sub(r"^ {3}", "", b, flags=re.M) for b in re.findall(r"```yaml\n(.*?)```", page, re.S)
    ]
    site, ours = (b for b in blocks if "namespace: raybone" in b)
    for name, text in (("site", site), ("site/ours", ours)):
        (tmp_path / name).mkdir()
        text = re.sub(r"(\.\./)+k8s", os.path.relpath(K8S, tmp_path / name), text)
        (tmp_path / name / "kustomization.yaml").write_text(text)
    (tmp_path / "site" / "ours" / "rayjob.yaml").write_text(manifests(read_study(GPU)))
    text = yaml.safe_dump_all(build(tmp_path / "site"))
    assert "image: REGISTRY/raybone:" in text
    assert "storageClassName: YOUR-RWX-CLASS" in text
    assert {d["kind"] for d in build(tmp_path / "site" / "ours")} == {
        "RayJob",
        "PodMonitor",
        "NetworkPolicy",
    }
