"""How long work runs: what it reports, how it is cancelled, and how it is shared out."""
