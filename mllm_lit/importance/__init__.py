"""Importance rules: how updates may land on the weights. Plain torch, usable from any training loop."""

from mllm_lit.importance.base import Rule, RuleError
from mllm_lit.importance.reference import Reference
from mllm_lit.importance.spider import Spider

RULES: dict[str, type[Rule]] = {"spider": Spider}

__all__ = ["RULES", "Reference", "Rule", "RuleError", "Spider"]
