"""Vocabularies: everything that turns a class into embeddings."""

from .core import MAX_ID, ClassExamples, Vocabulary, build_vocabulary, check_distinct, prototypes
from .exemplar import Exemplar, exemplar_examples, parse_exemplar
from .points import Point, parse_point, point_examples
from .templates import load_templates, template_embeddings
from .text import BACKGROUNDS, all_names, mean_examples, parse_classes, text_examples

__all__ = [
    "BACKGROUNDS",
    "MAX_ID",
    "ClassExamples",
    "Exemplar",
    "Point",
    "Vocabulary",
    "all_names",
    "build_vocabulary",
    "check_distinct",
    "exemplar_examples",
    "load_templates",
    "mean_examples",
    "parse_classes",
    "parse_exemplar",
    "parse_point",
    "point_examples",
    "prototypes",
    "template_embeddings",
    "text_examples",
]
