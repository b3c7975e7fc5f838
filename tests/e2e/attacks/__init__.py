"""The attacks of ./dev chaos, by topic, and what judges them."""
