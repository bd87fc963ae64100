"""Running episodes and keeping what came of them: engine, manifest, run folder."""
