"""Methods side by side: trials, the table, and its figures."""
