"""Verbs that take a study elsewhere: to Kubernetes, to Slurm, to a Ray cluster."""

from __future__ import annotations

import shlex
from json import dumps

from raybone.cli.study import StudyFile
from raybone.results.terminal import say


def manifests(study: StudyFile, *, out: str | None = None, image: str | None = None) -> None:
    """a RayJob for KubeRay that searches the study, as YAML on stdout

    Args:
        out STUDY: study folder in the cluster: below /raybone, or s3://BUCKET/FOLDER
        image IMAGE:TAG: default: what k8s/image/Dockerfile is tagged with
    """
    from raybone.run.checks import check_alone
    from raybone.run.kubernetes import manifests

    check_alone(read := study.read())
    say(manifests(read, out, image), end="")


def slurm(study: StudyFile, *, out: str, nodes: int = 1) -> None:
    """a batch script for Slurm that searches the study, and goes on after it is preempted

    Args:
        out STUDY: study folder or URL that all nodes reach
        nodes: to share the runs that go at once (default %(default)s)
    """
    from raybone.run.checks import check_alone
    from raybone.run.slurm import sbatch

    check_alone(read := study.read())
    say(sbatch(read, out, nodes), end="")


def submit(
    study: StudyFile,
    *,
    address: str,
    out: str | None = None,
    wait: float = 0,
    follow: bool = False,
    dry_run: bool = False,
) -> int:
    """run or resume a study as a job of a Ray cluster elsewhere

    Args:
        address URL: of the cluster's dashboard: http://head:8265
        out STUDY: study folder or URL that all nodes reach (default: runs/<name> beside the
            dataset)
        wait MINUTES: wait so long for nodes that an autoscaler adds, while not one run fits
            (default 0)
        follow: show the job's lines; its exit code becomes this one
        dry_run: show what would be sent, as JSON, and ask no cluster
    """
    from raybone.run.checks import check_alone
    from raybone.run.ray import jobs
    from raybone.run.ray.access import use_token
    from raybone.run.ray.cluster import Cluster
    from raybone.storage import plain_url

    check_alone(read := study.read())
    plain_url(address)
    Cluster(None, wait)
    parcel = jobs.pack(read, out, wait)
    if dry_run:
        sent = {
            "address": address,
            "token from": use_token(),
            "entrypoint": parcel.entrypoint,
            "environment": {},
            "dataset": parcel.dataset,
            "out": parcel.out,
            "files": parcel.files,
            "packages": parcel.packages,
            "bytes": len(parcel.content),
        }
        say(dumps(sent, indent=1))
        return 0
    job = jobs.submit(parcel, address)
    say(
        f"{job}: submitted with study.yaml and raybone's code, {len(parcel.content) / 1e3:.0f} kB; "
        f"every node must reach {parcel.dataset} and {parcel.out}"
        f"{''.join(f', and have {name} installed' for name in parcel.packages)}"
    )
    if follow:
        return jobs.follow(job, address, lambda text: say(text, end=""))
    say(f"where that folder is seen: raybone watch, logs or stop {shlex.quote(parcel.out)}")
    return 0
