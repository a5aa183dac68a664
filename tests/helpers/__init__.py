"""What several test folders use: examples to test with, and stand-ins for services."""
