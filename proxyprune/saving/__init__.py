"""`PruneResult` <-> folder, without pickle."""
