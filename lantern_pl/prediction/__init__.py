"""`lantern predict`: answers about the pairs of files of any size, in shards of Parquet, on any number of devices."""
