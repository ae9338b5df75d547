"""The import of meal shorts: files from S3, rows to the order service."""
