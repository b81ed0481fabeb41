"""Public archives in, datasets in Decathlon layout out: one file for each family of archives."""
