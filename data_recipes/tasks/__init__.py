"""Task families for SFT and RL: generators, cold-start solutions, exact checkers."""
