"""Shows operators what the server does: metrics, health pages and logs."""
