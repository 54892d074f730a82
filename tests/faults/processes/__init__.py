"""The same protocol with real processes, a real directory and real signals."""
