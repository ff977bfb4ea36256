"""Whole jobs: raw text and a budget in, a trained GPT and its report out. The public interface of the packages below.

command       `isoflop train` as one call: chooses one of the four ways to start a run
start         pretrain: plan within a budget, and train; train: a given configuration; resume: continue a run
like          train_like: repeat a run, except for the settings that are given
reopen        reopens an existing run to continue it; extend: with more budget, from before its decay
job           Job: train, measure, finish; used by all of the above
attempts      a second attempt, if the machine's speed differs from the planned one
pilots        tiny runs on the same text, made before a run to forecast its loss
ledger        forecasts and outcomes of all runs
distributed   several processes: rank 0 does the job, the others follow it into training
runs          load, sample, evaluate, list_runs: work with existing runs
suites        score, perplexity, lm_eval_model: suites, strided perplexity, a run as lm-eval's model
transfer      import_model, export_model: other formats
listener      progress reports of a job
outcome       final evaluation of a model
"""

from isoflop.job.command import Command, run_command
from isoflop.job.like import train_like
from isoflop.job.listener import Listener
from isoflop.job.runs import evaluate, list_runs, load, sample
from isoflop.job.start import pretrain, resume, train
from isoflop.job.suites import lm_eval_model, perplexity, score
from isoflop.job.transfer import export_model, import_model

__all__ = [
    "Command",
    "Listener",
    "evaluate",
    "export_model",
    "import_model",
    "list_runs",
    "lm_eval_model",
    "load",
    "perplexity",
    "pretrain",
    "resume",
    "run_command",
    "sample",
    "score",
    "train",
    "train_like",
]
