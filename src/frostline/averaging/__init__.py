"""Weight space: means of models, the line between two, the running statistics of what comes out, and greedy soups."""

from frostline.averaging.greedy import GreedyStep, best_first, greedy
from frostline.averaging.statistics import layers_with, renew_statistics
from frostline.averaging.weights import Named, Shapes, between, mean_of, put, shapes_of, unlike

__all__ = [
    "GreedyStep",
    "Named",
    "Shapes",
    "best_first",
    "between",
    "greedy",
    "layers_with",
    "mean_of",
    "put",
    "renew_statistics",
    "shapes_of",
    "unlike",
]
