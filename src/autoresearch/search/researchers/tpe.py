"""Optuna's tree-structured Parzen estimator over the searchable constants."""

from __future__ import annotations


