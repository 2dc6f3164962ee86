"""The command `semsam`, one file a group of commands."""
