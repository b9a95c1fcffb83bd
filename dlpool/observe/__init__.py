"""What the service shows of itself: its log."""
