"""What texts and runs show."""
