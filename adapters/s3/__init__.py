"""Files in S3, in whatever speaks its language, and on disk: read by ranges, of one version, and written."""
