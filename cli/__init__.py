"""The command line: one file a command; parses, calls one library function, prints."""
