"""What is done with a sample: prefills, answers, likelihoods, speeds, observations. Rows are made here."""
