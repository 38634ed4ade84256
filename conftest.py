"""What pytest leaves out: rooms of an extra that is not installed have no doctests to collect."""

from importlib.util import find_spec

NEEDS = {"vit_gelu/ablation/ray_cluster.py": "ray", "vit_gelu/ablation/slurm.py": "submitit"}

collect_ignore = [file for file, package in NEEDS.items() if find_spec(package) is None]
