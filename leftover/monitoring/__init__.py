"""What is shown and measured while something runs: terminal, trackers, time, memory."""
