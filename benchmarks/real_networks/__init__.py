"""Networks of the sizes that people bring, at random weights; SAMPLES (environment variable) of data for each."""
