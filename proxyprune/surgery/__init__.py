"""Cut a network, and prove without a plan that the result does what was predicted."""
