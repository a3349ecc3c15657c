"""The command line: a file a group of commands, each of which calls one function."""
