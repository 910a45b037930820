"""What is wrong with a manifest: against the schemas, and against the rules that no schema
holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from raybone.version import RELEASE as VERSION

Document = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = Path(__file__).parent / "schemas"
(RAY,) = re.findall(r'"ray\[.*\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
LENGTH = {"RayJob": 47, "RayCluster": 53, "RayCronJob": 36}  # of a name, in KubeRay 1.7
SPOT = {
    "cloud.google.com/gke-spot",
    "eks.amazonaws.com/capacityType",
    "karpenter.sh/capacity-type",
    "kubernetes.azure.com/scalesetpriority",
}
SCRATCH = {"name": "tmp", "mountPath": "/tmp"}
PART = {"app.kubernetes.io/part-of": "raybone"}


def schema_problems(document: Document) -> list[str]:
    """Where it breaks the schema of its kind; unknown fields are breaches."""
    return [
        f"{document.get('kind')}.{e.json_path}: {e.message[:200]}"
        for e in _validator(document["kind"]).iter_errors(document)
    ]


@lru_cache
def _validator(kind: str) -> Draft202012Validator:
    if kind in LENGTH:
        return Draft202012Validator(json.loads((SCHEMAS / f"{kind}.json").read_text()))
    if kind == "PodMonitor":  # the fields used here, as the CRD of the Prometheus operator has them
        relabeling = {
            "action": {},
            "sourceLabels": {"type": "array"},
            "targetLabel": {"type": "string"},
        }
        endpoint = {"port": {"type": "string"}, "relabelings": {"items": _only(relabeling)}}
        return Draft202012Validator(
            _only(
                {
                    "apiVersion": {"const": "monitoring.coreos.com/v1"},
                    "kind": {},
                    "metadata": {},
                    "spec": _only(
                        {
                            "selector": _only({"matchLabels": {}}),
                            "podMetricsEndpoints": {
                                "type": "array",
                                "minItems": 1,
                                "items": _only(endpoint),
                            },
                        }
                    ),
                }
            )
        )
    core = json.loads((SCHEMAS / "kubernetes-1.34.json").read_text())
    return Draft202012Validator({"$ref": f"#/$defs/{core['kinds'][kind]}", "$defs": core["$defs"]})


def _only(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": list(properties),
    }


def rule_problems(document: Document) -> list[str]:
    """What KubeRay's operator or Kubernetes would refuse or do wrong, although the schema allows
    it.
    """
    kind, name = document["kind"], document["metadata"]["name"]
    wrong = []
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > LENGTH.get(kind, 63):
        wrong.append(f"name {name}")
    job = _job(document)
    if job is not None:
        wrong += _job_problems(job)
    if cluster := _cluster(document):
        wrong += _cluster_problems(cluster)
    for where, pod in pods(document):
        wrong += [f"{where}: {problem}" for problem in _pod_problems(where, pod)]
    return wrong


def pods(document: Document) -> Iterator[tuple[str, Document]]:
    """Every pod template in a document, with what it is for."""
    if document["kind"] == "Pod":
        yield "pod", document
    job, cluster = _job(document), _cluster(document)
    if job is not None:
        yield "submitter", job["submitterPodTemplate"]
    if cluster:
        yield "head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"workers {group['groupName']}", group["template"]


def _job(document: Document) -> Document | None:
    job: Document | None = {
        "RayJob": document.get("spec"),
        "RayCronJob": document.get("spec", {}).get("jobTemplate"),
    }.get(document["kind"])
    return job


def _cluster(document: Document) -> Document:
    cluster: Document = (_job(document) or {}).get("rayClusterSpec") or (
        document["spec"] if document["kind"] == "RayCluster" else {}
    )
    return cluster


def _job_problems(job: Document) -> list[str]:
    out = re.fullmatch(
        r"raybone search /etc/raybone/study\.yaml --out "
        r"((?:s3://[a-z0-9.-]+|/raybone)(?:/[\w.=+-]+)+) "
        "--address auto --wait 60",
        job["entrypoint"],
        re.ASCII,
    )
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]
    file = {
        "name": "study",
        "downwardAPI": {
            "items": [
                {
                    "path": "study.yaml",
                    "fieldRef": {"fieldPath": "metadata.annotations['raybone/study']"},
                }
            ]
        },
    }
    mount = {"name": "study", "mountPath": "/etc/raybone", "readOnly": True}
    keyed = [
        c.get("envFrom") == [{"secretRef": {"name": "raybone-s3"}}]
        for where, pod in pods({"kind": "RayJob", "spec": job})
        if where != "submitter"
        for c in pod["spec"]["containers"]
    ]
    rules = {
        "entrypoint": out is not None,
        "the study reaches the head": "raybone/study" in head["metadata"]["annotations"]
        and file in head["spec"]["volumes"]
        and mount in head["spec"]["containers"][0]["volumeMounts"],
        "credentials of the object store, where it is used and nowhere else": out is not None
        and (all(keyed) if out[1].startswith("s3:") else not any(keyed)),
        "no text of the study in a shell": "runtimeEnvYAML" not in job and "metadata" not in job,
        "a new cluster after a failure": job["backoffLimit"] > 0 and "clusterSelector" not in job,
        "mode": job["submissionMode"] == "K8sJobMode",
        "shutdown, as suspend, ttl and Kueue want it": job["shutdownAfterJobFinishes"] is True
        and job["ttlSecondsAfterFinished"] == 0
        and "deletionStrategy" not in job,
        "deadlines": 0 < job["activeDeadlineSeconds"] < 2**31
        and job["preRunningDeadlineSeconds"] >= 1,
        "upgradeStrategy": "upgradeStrategy" not in job["rayClusterSpec"],
    }
    return [rule for rule, kept in rules.items() if not kept]


def _cluster_problems(cluster: Document) -> list[str]:
    head, scales = cluster["headGroupSpec"], cluster["enableInTreeAutoscaling"]
    groups, spec = cluster["workerGroupSpecs"], head["template"]["spec"]
    apart = {
        e["key"]
        for t in spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        for e in t["matchExpressions"]
        if e["operator"] == "NotIn"
    }
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    token = [
        v["name"]
        for v in spec["volumes"]
        if any("serviceAccountToken" in s for s in v.get("projected", {}).get("sources", []))
    ]
    rules = {
        "rayVersion is pyproject's": cluster["rayVersion"] == RAY,
        "token": cluster["authOptions"] == {"mode": "token", "secretName": "raybone-token"},
        "the head does no work": head["rayStartParams"]["num-cpus"] == "0",
        "the head stays off spot nodes": apart == SPOT and len(terms) == 1,
        "ports of the head": {p["containerPort"] for p in spec["containers"][0]["ports"]}
        >= {6379, 8265, 10001, 8080, 44217, 44227},
        "resources besides rayStartParams": not any("resources" in g for g in [head, *groups]),
        "sizes": all(
            0 <= g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] > 0 for g in groups
        ),
        "groups": len({g["groupName"] for g in groups}) == len(groups),
        "priority needs the autoscaler": scales
        or not any({"priority", "idleTimeoutSeconds"} & set(g) for g in groups),
        "the token is the autoscaler's alone": token == (["autoscaler-token"] if scales else [])
        and not any(m["name"] in token for c in spec["containers"] for m in c["volumeMounts"]),
        "autoscaler": _autoscales(cluster["autoscalerOptions"])
        if scales
        else "autoscalerOptions" not in cluster,
        "one switch for v2": not any(
            e["name"] == "RAY_enable_autoscaler_v2" for e in spec["containers"][0]["env"]
        ),
    }
    return [rule for rule, kept in rules.items() if not kept]


def _autoscales(options: Document) -> bool:
    mount = {
        "name": "autoscaler-token",
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        "readOnly": True,
    }
    return (
        options["version"] == "v2"
        and options["volumeMounts"] == [mount, SCRATCH]
        and _sized(options["resources"])
        and _confined(options["securityContext"])
    )


def _pod_problems(where: str, pod: Document) -> list[str]:
    spec = pod["spec"]
    user = spec["securityContext"]
    rules = {
        "restartPolicy, as autoscaler v2 wants it": spec["restartPolicy"] == "Never",
        "no token": spec["automountServiceAccountToken"] is False
        and (where == "head" or spec["serviceAccountName"] == "raybone"),
        "user": user["runAsNonRoot"] is True
        and user["runAsUser"] == user["fsGroup"] == 1000
        and user["seccompProfile"] == {"type": "RuntimeDefault"},
        "label, by which the network policies find it": pod["metadata"]["labels"].items()
        >= PART.items(),
        "resources": all(_sized(c["resources"]) for c in spec["containers"]),
        "security": all(_confined(c["securityContext"]) for c in spec["containers"]),
        "image": all(c["image"] == f"raybone:{VERSION}-ray{RAY}" for c in spec["containers"]),
        "GPU nodes": all(
            "nvidia.com/gpu" not in c["resources"]["limits"] for c in spec["containers"]
        )
        or any(t["key"] == "nvidia.com/gpu" for t in spec["tolerations"]),
        "the volume that outlives it": where == "submitter"
        or {"name": "raybone", "mountPath": "/raybone"} in spec["containers"][0]["volumeMounts"],
        "all that is written is below /tmp, within a limit": [
            v["emptyDir"].keys() for v in spec["volumes"] if v["name"] == "tmp"
        ]
        == [{"sizeLimit"}]
        and all(SCRATCH in c["volumeMounts"] for c in spec["containers"]),
        "host": not {"hostNetwork", "hostPID", "hostIPC"} & set(spec),
    }
    return [rule for rule, kept in rules.items() if not kept]


def _sized(resources: Document) -> bool:
    return resources["requests"] == resources["limits"] and {
        "cpu",
        "memory",
        "ephemeral-storage",
    } <= set(resources["limits"])


def _confined(context: Document) -> bool:
    return context == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
