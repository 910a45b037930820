"""Ray: the only room that imports it. Tune schedules configurations, Train runs their folds."""

import os

# Before the first import of ray: no usage reports, no loggers that write beside the study, quick
# health checks (an epoch's report waits for one), an end to waiting for resources that never come
# (seconds), no watcher of preemptions in every run: the loss of a node is seen anyhow, and each
# epoch is saved; and no end of Tune's own at Ctrl-C, which the search heeds itself.
for _key, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(_key, _value)
