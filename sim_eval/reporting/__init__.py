"""Episode results for a reader: intervals and paired tests, tables, videos."""
