"""The names of online methods."""

# Values of a policy's `objective` that name an online method, beside the OBJECTIVES of scored rows.
ONLINE = ("ppo",)
