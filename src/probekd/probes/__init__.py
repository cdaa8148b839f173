"""Probes: small models on the states of one depth, cross-fitted, chosen by out-of-fold log-loss, calibrated."""
