"""The constants of a row: reward, log pi_ref(y|x), V(x), A(x, y)."""
