"""Whole jobs: raw text and a budget in, a trained GPT and its report out. The public door of everything below.

pretraining   pretrain: survey, time the machine, plan, prepare, train, measure, report; train: a configuration that is
              already decided; resume: on with a run, or with more budget from before its decay (extend)
runs          load, sample, evaluate, list_runs: what can be done with a run that is there
transfer      import_model, export_model: models from elsewhere as runs, and back
listener      who is told what while a job works
ceiling       the machine's peak, remembered
outcome       result.json and the ledger
"""

from isoflop.job.listener import Listener
from isoflop.job.pretraining import pretrain, resume, start_from, train, with_sources
from isoflop.job.runs import evaluate, list_runs, load, sample
from isoflop.job.transfer import export_model, import_model

__all__ = [
    "Listener",
    "evaluate",
    "export_model",
    "import_model",
    "list_runs",
    "load",
    "pretrain",
    "resume",
    "sample",
    "start_from",
    "train",
    "with_sources",
]
