"""Running a study: here, on Ray, or on Kubernetes."""
