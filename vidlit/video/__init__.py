"""A folder to clips to frames: layouts, buckets, cutting, decoding, duplicates."""
