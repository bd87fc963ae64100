"""What the doctor examines: small functions that measure one thing each and say what they found."""
