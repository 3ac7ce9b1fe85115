"""All results in one page: figures, tables, and which claims of the paper they confirm."""
