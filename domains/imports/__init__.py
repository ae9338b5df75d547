"""Imports of large CSV files: one child workflow a row, each row done once, however often the file is imported."""
