"""`PrunePlan` -> smaller module; optimizer and training state follow the cut."""
