"""Incremental, period-by-period training of multi-scenario recommender models."""

__version__ = "0.1.0"
