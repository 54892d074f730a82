"""Object stores behind one protocol: a directory and S3."""
