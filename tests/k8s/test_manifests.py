"""`raybone manifests`: one RayJob a study, strict to KubeRay's schema and to the rules beyond
it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from strict import RAY, ROOT, VERSION, Document, rule_problems, schema_problems

from raybone.cli import main
from raybone.study.files import parse_study

SMOKE = ROOT / "jobs" / "smoke.yaml"


def render(capsys: pytest.CaptureFixture[str], *arguments: object) -> Document:
    capsys.readouterr()
    assert main(["manifests", *map(str, arguments)]) == 0
    (document,) = yaml.safe_load_all(capsys.readouterr().out)
    return dict(document)


def group(document: Document) -> Document:
    (found,) = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return dict(found)


def limits(document: Document) -> Document:
    return dict(group(document)["template"]["spec"]["containers"][0]["resources"]["limits"])


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--out", "s3://bucket/runs/a"],
        ["--set", "resources.gpus=1"],
        ["--set", "resources.gpus=0.25"],
        ["--set", "resources.gpus=2", "resources.workers=4", "resources.cpus=8"],
        ["--set", "limits.hours=5"],
    ],
)
def test_one_rayjob_that_the_schema_and_the_operator_take(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    document = render(capsys, SMOKE, *more)
    assert schema_problems(document) == []
    assert rule_problems(document) == []


def test_the_study_travels_as_data_whatever_is_in_it(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = ["$(touch /tmp/x)", "`id`", "'; rm -rf / #", "$(POD_NAME)", "a\nb: [", 'é "quoted"']
    fixed = {"categories": hostile, "imgsz": 64}
    content = {**study, "dataset": "no/such place", "fixed": fixed}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    document = render(capsys, tmp_path / "s.yaml")
    annotations = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"][
        "annotations"
    ]
    carried = parse_study(yaml.safe_load(annotations.pop("raybone/study")))
    assert carried == parse_study({**content, "dataset": "/raybone/no/such place"})
    assert not any(
        piece in yaml.safe_dump(document) for piece in ("touch", "`", "rm -rf", "POD_NAME")
    )


def test_the_pods_are_as_large_as_a_training_worker(capsys: pytest.CaptureFixture[str]) -> None:
    document = render(
        capsys,
        SMOKE,
        "--set",
        "resources.cpus=4",
        "resources.gpus=2",
        "resources.workers=2",
        "resources.concurrent=3",
    )
    assert {
        k: group(document)[k] for k in ("groupName", "minReplicas", "replicas", "maxReplicas")
    } == {"groupName": "gpu", "minReplicas": 2, "replicas": 2, "maxReplicas": 6}
    assert limits(document)["nvidia.com/gpu"] == "2"
    assert limits(document)["cpu"] == "4"


def test_runs_that_share_a_gpu_share_a_pod(capsys: pytest.CaptureFixture[str]) -> None:
    document = render(
        capsys, SMOKE, "--set", "resources.gpus=0.3", "resources.cpus=2", "resources.concurrent=7"
    )
    assert limits(document)["nvidia.com/gpu"] == "1"
    assert limits(document)["cpu"] == "6"
    assert [group(document)[k] for k in ("minReplicas", "replicas", "maxReplicas")] == [1, 1, 3]


def test_no_more_pods_than_configurations_and_eight_by_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert group(render(capsys, SMOKE, "--set", "search.trials=2"))["maxReplicas"] == 2
    assert group(render(capsys, SMOKE, "--set", "search.trials=500"))["maxReplicas"] == 8


@pytest.mark.parametrize(
    ("hours", "seconds"),
    [("3", 3 * 4800 + 3600), ("1.0e+9", 2**31 - 1), ("1e308", 2**31 - 1), (".inf", 604800)],
)
def test_the_deadline_is_over_the_studys_own_and_fits_the_field(
    hours: str, seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    document = render(capsys, SMOKE, "--set", f"limits.hours={hours}")
    assert document["spec"]["activeDeadlineSeconds"] == seconds


def test_names_are_labels_and_stay_apart(capsys: pytest.CaptureFixture[str]) -> None:
    studies = [
        "smoke",
        "2026",
        "a.b",
        "a-b",
        "A-B",
        "a_b",
        "x" * 60,
        "x" * 59 + "y",
        "a" * 47,
        "a" * 48,
        "z..",
        "7-",
    ]
    documents = [render(capsys, SMOKE, "--set", f"name='{name}'") for name in studies]
    names = [d["metadata"]["name"] for d in documents]
    assert names[:4:3] == ["smoke", "a-b"]
    assert len(set(names)) == len(studies)
    assert [rule_problems(d) for d in documents] == [[]] * len(studies)


def test_relative_places_are_on_the_shared_volume(capsys: pytest.CaptureFixture[str]) -> None:
    document = render(capsys, SMOKE, "--out", "runs/again")
    assert document["spec"]["entrypoint"].split()[4] == "/raybone/runs/again"
    assert "--out /raybone/runs/smoke " in render(capsys, SMOKE)["spec"]["entrypoint"]


def test_image_and_ray_are_the_pinned_version_unless_another_image_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = render(capsys, SMOKE)["spec"]["rayClusterSpec"]
    assert (
        cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
        == f"raybone:{VERSION}-ray{RAY}"
    )
    named = f"registry.local:5000/lab/raybone@sha256:{'0' * 64}"
    text = yaml.safe_dump(render(capsys, SMOKE, "--image", named))
    assert text.count(f"image: {named}") == 3
    assert text.count("image:") == 3


@pytest.mark.parametrize(
    "arguments",
    [
        [SMOKE, "--out", "/tmp/x"],
        [SMOKE, "--out", "../x"],
        [SMOKE, "--out", "a; rm -rf x"],
        [SMOKE, "--out", "$(id)"],
        [SMOKE, "--out", "s3://bucket"],
        [SMOKE, "--out", "gs://bucket/x"],
        [SMOKE, "--out", "a\n"],
        [SMOKE, "--image", "raybone"],
        [SMOKE, "--image", "raybone:latest"],
        [SMOKE, "--image", "local:5000/raybone"],
        [SMOKE, "--image", "a b:1"],
        [SMOKE, "--set", "epochs=0"],
        ["none.yaml"],
        [],
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifests", *map(str, arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("raybone: ")
    assert told.err.count("\n") == 1


def test_making_one_imports_neither_torch_nor_ray() -> None:
    """The verb does, as it checks the study against its model first."""
    code = (
        "import sys; from raybone.run.kubernetes import manifests; "
        "from raybone.study.files import read_study; print(manifests(read_study(sys.argv[1]))); "
        "print({'torch', 'ray'} & set(sys.modules), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, SMOKE], capture_output=True, text=True, check=True
    )
    assert run.stderr == "set()\n"
    assert run.stdout.startswith("apiVersion: ray.io/v1\nkind: RayJob\n")


HEAD = ("rayClusterSpec", "headGroupSpec", "template", "spec")
WORKER = ("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec")


def spoil(*path: str | int, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        node: Any = document["spec"]
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        spoil("rayClusterSpec", "headGroupSpc", value={}),
        spoil("backofLimit", value=1),
        spoil("suspend", value="no"),
        spoil(*WORKER, "restartpolicy", value="Never"),
        spoil(*WORKER, "containers", 0, "resources", "limit", value={}),
        spoil("rayClusterSpec", "authOptions", "mode", value="tokens"),
        spoil("rayClusterSpec", "autoscalerOptions", "securityContext", "seccomp", value={}),
    ],
)
def test_a_misspelt_field_breaks_the_schema(
    change: Callable[[Document], None], capsys: pytest.CaptureFixture[str]
) -> None:
    document = render(capsys, SMOKE)
    change(document)
    assert schema_problems(document)


@pytest.mark.parametrize(
    "change",
    [
        spoil(*HEAD, "restartPolicy", value="Always"),
        spoil(*WORKER, "restartPolicy", value="OnFailure"),
        spoil(*WORKER, "automountServiceAccountToken", value=True),
        spoil(*HEAD, "automountServiceAccountToken", value=True),
        spoil(*WORKER, "serviceAccountName", value="default"),
        spoil(*HEAD, "securityContext", "runAsNonRoot", value=False),
        spoil(*WORKER, "containers", 0, "resources", "limits", "memory", value="1Ti"),
        spoil(*WORKER, "containers", 0, "securityContext", "capabilities", value={}),
        spoil(*WORKER, "containers", 0, "image", value="raybone:latest"),
        spoil(
            *HEAD,
            "affinity",
            "nodeAffinity",
            value={"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}},
        ),
        spoil(*HEAD, "containers", 0, "volumeMounts", 0, "name", value="autoscaler-token"),
        spoil(*HEAD, "containers", 0, "ports", value=[{"name": "metrics", "containerPort": 8080}]),
        spoil("rayClusterSpec", "rayVersion", value="2.59.0"),
        spoil("rayClusterSpec", "authOptions", value={"mode": "token"}),
        spoil("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus", value="2"),
        spoil("rayClusterSpec", "autoscalerOptions", "version", value="v1"),
        spoil("rayClusterSpec", "enableInTreeAutoscaling", value=False),
        spoil("rayClusterSpec", "workerGroupSpecs", 0, "minReplicas", value=9),
        spoil("rayClusterSpec", "upgradeStrategy", value={"type": "Recreate"}),
        spoil("shutdownAfterJobFinishes", value=False),
        spoil("backoffLimit", value=0),
        spoil("deletionStrategy", value={"deletionRules": []}),
        spoil("submissionMode", value="InteractiveMode"),
        spoil("activeDeadlineSeconds", value=0),
        spoil("runtimeEnvYAML", value="env_vars: {}"),
        spoil(
            "entrypoint",
            value="raybone search /etc/raybone/study.yaml --out /tmp/x --address auto --wait 60",
        ),
        spoil(
            "entrypoint",
            value="raybone search /etc/raybone/study.yaml --out s3://a/b --address auto --wait 60",
        ),
        spoil("entrypoint", value="python x.py"),
    ],
)
def test_a_broken_rule_is_seen(
    change: Callable[[Document], None], capsys: pytest.CaptureFixture[str]
) -> None:
    document = render(capsys, SMOKE)
    change(document)
    assert rule_problems(document)


def test_a_name_that_kuberay_refuses_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    document = render(capsys, SMOKE)
    for name in ("a" * 48, "1a", "a.b", "A", "a-"):
        document["metadata"]["name"] = name
        assert rule_problems(document) == [f"name {name}"]


@pytest.mark.parametrize("place", ["../../data/ours", "~/ours", ""])
def test_a_dataset_that_no_pod_sees_is_refused(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(f"dataset: '{place}'\nmodel: unet\n")
    assert main(["manifests", str(tmp_path / "s.yaml")]) == 2
    told = capsys.readouterr()
    assert "shared volume" in told.err
    assert not told.out


def test_a_dataset_of_a_bucket_comes_with_the_key_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text("dataset: s3://bucket/ours\nmodel: unet\n")
    document = render(capsys, tmp_path / "s.yaml")
    (container,) = group(document)["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "raybone-s3"}}]


def test_an_earlier_study_in_a_bucket_and_the_volume_itself_are_reached_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = "fixed: {init_from: 's3://bucket/runs/a'}"
    (tmp_path / "s.yaml").write_text(f"dataset: .\nmodel: unet\n{start}\n")
    document = render(capsys, tmp_path / "s.yaml")
    (container,) = group(document)["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "raybone-s3"}}]
    assert "dataset: /raybone\n" in yaml.safe_dump(document).replace("\\n", "\n")


def test_a_share_of_a_gpu_asks_for_no_more_than_all_runs_want(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["resources.gpus=0.1", "resources.cpus=4", "resources.concurrent=2"]
    assert limits(render(capsys, SMOKE, "--set", *few))["cpu"] == "8"
