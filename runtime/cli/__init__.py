"""The command line: arguments and text. Decisions are made in earlier rooms, all of which it may import."""
