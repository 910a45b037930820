"""cohort_race: rungs that are decided once, by a pilot, a gate and a posterior."""
