"""From an epoch plan to batches on the device."""
