"""Tables with named columns: CSV, Parquet, Arrow, read and written."""
