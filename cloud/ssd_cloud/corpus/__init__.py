"""The training data of the packaged core, made from installable packages: fetch, extract, clean, split, tokenize."""
