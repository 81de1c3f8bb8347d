"""Lightning callbacks: captions, codebook collapse, EMA, evaluation, pictures, retrieval, saving, token dump."""

from zoo.callbacks.captions import Captions
from zoo.callbacks.collapse import CollapseGuard
from zoo.callbacks.divergence import DivergenceGuard
from zoo.callbacks.ema import EMA
from zoo.callbacks.evaluation import Evaluation
from zoo.callbacks.grids import ImageGrids
from zoo.callbacks.interrupt import StopOnSignal
from zoo.callbacks.last_checkpoint import LastCheckpoint
from zoo.callbacks.retrieval import Retrieval
from zoo.callbacks.samples import Samples
from zoo.callbacks.summary import RunSummary
from zoo.callbacks.token_dump import TokenDump

__all__ = [
    "EMA",
    "Captions",
    "CollapseGuard",
    "DivergenceGuard",
    "Evaluation",
    "ImageGrids",
    "LastCheckpoint",
    "Retrieval",
    "RunSummary",
    "Samples",
    "StopOnSignal",
    "TokenDump",
]
