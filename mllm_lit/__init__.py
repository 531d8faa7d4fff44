"""Fine-tune a multimodal LLM on one task and measure, in the same run, what it forgets."""

__version__ = "0.2.0"
