"""Running episodes and recording their results: engine, workers, run folder, verification."""
