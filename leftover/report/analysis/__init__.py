"""How good are scored rows: what is left over, calibration of the value, duplicates, rows that contradict others."""
