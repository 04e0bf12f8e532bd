"""How good is the stop: the rule against everything else, on simulated runs with a known answer."""
