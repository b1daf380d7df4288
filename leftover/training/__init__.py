"""Which rows are drawn, LoLTrainer and PPOTrainer, the reference and every policy of a run."""
