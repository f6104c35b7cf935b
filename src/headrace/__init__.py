"""Headrace: serve large language models across machines."""

__version__ = "0.1.0"
