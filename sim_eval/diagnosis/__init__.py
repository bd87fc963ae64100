"""The checks of the doctor: small functions that measure one thing each and return findings."""
