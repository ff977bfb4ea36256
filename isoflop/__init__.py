"""isoflop: raw text and a compute budget in, the best GPT that the budget can buy out."""

__version__ = "0.1.0"
