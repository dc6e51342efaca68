"""What people do with dead letters: read them, look into them, send them again. Nothing here is on a batch's way."""
