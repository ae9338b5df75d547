"""S3 in memory: moto's server, in a process of its own."""
