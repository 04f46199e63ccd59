"""Activation checkpointing, as every network here does it."""

from __future__ import annotations

from typing import Any

RECOMPUTE: dict[str, Any] = {"use_reentrant": False, "determinism_check": "none"}
"""Options of `torch.utils.checkpoint.checkpoint`. What is checked by default are shapes of what was saved: under ZeRO-3 a
frozen weight is saved itself, and is whole in the forward and empty when the check comes, as it has been given back; its
layer gathers it again before it is used."""
