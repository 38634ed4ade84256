"""Reading and naming runs, for rooms that know run folders and nothing of training."""

from vit_gelu.training.record import config_hash, read_record, write_json

__all__ = ["config_hash", "read_record", "write_json"]
