"""The quality suite: held-out likelihood, generated text under judges, and answers, of one core against its base."""
