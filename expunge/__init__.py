"""expunge makes trained networks forget chosen data, and shows how far they did."""

__version__ = "0.1.0"
