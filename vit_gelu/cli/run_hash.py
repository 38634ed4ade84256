"""The hash of a run's options, for rooms that know run folders and nothing of training; loads no torch."""

from vit_gelu.training.config_hash import NOT_IN_HASH, config_hash

__all__ = ["NOT_IN_HASH", "config_hash"]
