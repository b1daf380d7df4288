"""What a run would download, compute and cost, found out without the network and without a run folder."""
