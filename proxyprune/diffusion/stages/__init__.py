"""The steps of a run, in flow order: base, losses, trials, budgets, layout, experts."""
