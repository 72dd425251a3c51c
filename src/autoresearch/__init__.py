"""Machine-learning research while its owner sleeps."""

__version__ = "0.1.0"
