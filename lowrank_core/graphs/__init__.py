"""Networks as graphs: read, run, written, and looked through for memory."""
