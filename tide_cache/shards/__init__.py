"""Teacher signals to Parquet bytes and back."""
