"""Many questions: settings, money, time, cache and audit."""
