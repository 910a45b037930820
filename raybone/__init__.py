"""Cross-validated hyper-parameter search for bone-metastasis models on Ray.

Importing it imports neither torch nor ray.
"""

__version__ = "0.1.0"
