"""Whole jobs: raw text and a budget in, a trained GPT and its report out. The public door of everything below.

command       `isoflop train` as one call: which of the four ways to start it means
start         pretrain: plan within a budget, and train; train: a configuration that is decided; resume: on with a run
like          train_like: a run as another one, but for what is set
reopen        a run that is there made ready to go on, with more budget from before its decay (extend)
job           Job: train, measure, finish; what all of these come to
together      several processes: the first one does the job, the others follow it into training
runs          load, sample, evaluate, list_runs: what can be done with a run that is there
suites        score, perplexity, lm_eval_model: suites, strided perplexity, a run as lm-eval's model
transfer      import_model, export_model: models from elsewhere as runs, and back
listener      who is told what while a job works
ceiling       the machine's peak, remembered
outcome       what a model is judged by, and the ledger
"""

from isoflop.job.command import Command, carry_out
from isoflop.job.like import train_like
from isoflop.job.listener import Listener
from isoflop.job.runs import evaluate, list_runs, load, sample
from isoflop.job.start import pretrain, resume, train
from isoflop.job.suites import lm_eval_model, perplexity, score
from isoflop.job.transfer import export_model, import_model

__all__ = [
    "Command",
    "Listener",
    "carry_out",
    "evaluate",
    "export_model",
    "import_model",
    "list_runs",
    "lm_eval_model",
    "load",
    "perplexity",
    "pretrain",
    "resume",
    "sample",
    "score",
    "train",
    "train_like",
]
