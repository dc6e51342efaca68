"""Card windows: one view of one hour per card, on the events with which other systems were measured."""
