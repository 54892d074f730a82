"""What reinforcement learning adds: rollouts, advantages, curriculum, rewards."""
