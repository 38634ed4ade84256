"""Reading and naming runs, for rooms that know run folders and nothing of training."""

from vit_gelu.training.record import read_record, write_json

__all__ = ["read_record", "write_json"]
