"""L2-SP (Li et al., ICML 2018, arXiv 1802.01483): a quadratic pull towards the starting point."""

from typing import Any, Literal

from mllm_lit.importance.pull import Pull


class L2SP(Pull):
    """``strength/2 · Σ (θ − θ0)²``, summed over all entries.

    Args:
        strength: α of the paper.
        form: ``loss`` or ``decoupled``; see :class:`Pull`.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    def __init__(self, strength: float = 0.1, form: Literal["loss", "decoupled"] = "loss", **shared: Any) -> None:
        super().__init__(strength, form, **shared)
