"""Reports to read and to publish: of runs, of several runs side by side, and of studies."""

from mllm_lit.reports.runs import write_run, write_runs
from mllm_lit.reports.scores import ReportError, score_of
from mllm_lit.reports.study import write_report

__all__ = ["ReportError", "score_of", "write_report", "write_run", "write_runs"]
