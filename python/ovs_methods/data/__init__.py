"""Data sets with labels: where their files are, what their masks mean, and what their classes are called."""

from .classes import CLASSES, WORDS, query_words
from .core import KINDS, Dataset, Item
from .folder import read_class_list
from .layouts import load_dataset
from .masks import MaskRule, read_target
from .published import Published, published_numbers, published_rules

__all__ = [
    "CLASSES",
    "KINDS",
    "WORDS",
    "Dataset",
    "Item",
    "MaskRule",
    "Published",
    "load_dataset",
    "published_numbers",
    "published_rules",
    "query_words",
    "read_class_list",
    "read_target",
]
