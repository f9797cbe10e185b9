"""How Hugging Face configurations name their dimensions: one row a ``model_type``."""

from simulator.graph.huggingface.families import FAMILIES
from simulator.graph.huggingface.reader import ConfigReader, Family

__all__ = ["FAMILIES", "ConfigReader", "Family"]
