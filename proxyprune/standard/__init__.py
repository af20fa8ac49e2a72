"""A network's class and config: which widths and depths the config can express, and the config of a pruned network."""
