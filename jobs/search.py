"""Entrypoint for `ray job submit`: search a study on the cluster that runs this job; resumes when
started again.
"""

from __future__ import annotations

import argparse

from raybone.cli import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, metavar="STUDY.yaml")
    parser.add_argument(
        "--out", required=True, metavar="STUDY", help="folder or URL that every node reaches"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key=value", dest="overrides"
    )
    parser.add_argument(
        "--wait", default="0", metavar="MINUTES", help="for nodes that an autoscaler adds"
    )
    options = parser.parse_args()
    overrides = ["--set", *options.overrides] if options.overrides else []
    run(
        [
            "search",
            options.study,
            "--out",
            options.out,
            "--address",
            "auto",
            "--wait",
            options.wait,
            *overrides,
        ]
    )
