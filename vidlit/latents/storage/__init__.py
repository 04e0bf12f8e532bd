"""Where the files of a store lie: a local folder, or object storage through fsspec."""
