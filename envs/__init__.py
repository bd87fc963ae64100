"""What is acted upon: RGB-D simulation with calibrated cameras."""
