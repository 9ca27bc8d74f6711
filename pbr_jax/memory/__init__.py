"""Memory and time of a train step on a card, before it runs: `pbr fit` and `memory_budget`."""
