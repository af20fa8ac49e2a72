"""The tools, by what they do: read the network, decide what to cut, judge what came of it."""
