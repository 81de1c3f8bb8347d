"""Lightning callbacks: codebook collapse, EMA, evaluation, image grids, samples, token dump, run summary."""

from zoo.callbacks.collapse import CollapseGuard
from zoo.callbacks.divergence import DivergenceGuard
from zoo.callbacks.ema import EMA
from zoo.callbacks.evaluation import Evaluation
from zoo.callbacks.grids import ImageGrids
from zoo.callbacks.samples import Samples
from zoo.callbacks.summary import RunSummary
from zoo.callbacks.token_dump import TokenDump

__all__ = ["EMA", "CollapseGuard", "DivergenceGuard", "Evaluation", "ImageGrids", "RunSummary", "Samples", "TokenDump"]
