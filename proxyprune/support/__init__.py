"""Files, versions, extras and checks: what knows nothing of networks or pruning. Imports only `errors`."""
