"""Proximal policy optimisation: the online baseline, which trains on its own completions."""

# Values of a policy's `objective` that name an online method, beside the OBJECTIVES of scored rows.
ONLINE = ("ppo",)
