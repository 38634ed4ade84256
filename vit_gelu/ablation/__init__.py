"""Ablations: run folders in, evidence out."""
