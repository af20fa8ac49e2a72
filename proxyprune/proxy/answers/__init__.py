"""One answer of a language model, and the ranking that several answers agree on."""
