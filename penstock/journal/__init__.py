"""The crash journal: finds the row that kills its worker, and sets it alone aside."""
