"""The attacks of ./dev chaos, one module for each topic, and the harness that
judges them."""
