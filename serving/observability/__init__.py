"""Reports to operators: metrics, health pages and logs."""
