"""The training machinery every training stage shares: loop, schedule, optimizer, checkpoints."""
