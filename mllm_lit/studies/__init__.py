"""Studies: many runs along some axes, planned from a file, run, kept and reported."""

from mllm_lit.studies.plan import Cell, Plan
from mllm_lit.studies.results import Results, collect, read_results, write_results
from mllm_lit.studies.runners import Local, Slurm, Stopped, Tools
from mllm_lit.studies.store import Store
from mllm_lit.studies.study import Study, StudyError, read_study

__all__ = [
    "Cell",
    "Local",
    "Plan",
    "Results",
    "Slurm",
    "Stopped",
    "Store",
    "Study",
    "StudyError",
    "Tools",
    "collect",
    "read_results",
    "read_study",
    "write_results",
]
