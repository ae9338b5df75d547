"""Real processes, real faults: what is promised is counted afterwards, by other means than the runtime's own."""
