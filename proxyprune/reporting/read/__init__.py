"""Files of a result -> values. Tolerant: a report of an older version still reads."""
