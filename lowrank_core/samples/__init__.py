"""Data as people have it: each file of this package reads one kind of file or folder as samples of a network."""
