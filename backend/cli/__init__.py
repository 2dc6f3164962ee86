"""The command `semsam`, a file for each group of commands."""
